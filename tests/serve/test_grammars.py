"""Grammars are tried once in a process with limits, and wrong ones each time that they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from vl2.errors import UserError
from vl2.infer.constraint import JsonSchema
from vl2.infer.constraint_tools import ToolCalls
from vl2.process.tool_calls import Tool, ToolUse
from vl2.serve.grammars import GrammarChecker

pytest.importorskip("llguidance")


class Tried:
    """Stands in for the decoders: it notes what it is asked to try, and calls one of the grammars wrong."""

    def __init__(self, wrong: tuple[int, str] | None = None) -> None:
        self.wrong, self.asked = wrong, list[Sequence[str]]()

    async def try_grammars(self, grammars: Sequence[str], client: str) -> tuple[int, str] | None:
        self.asked.append(grammars)
        return self.wrong


def check(checker: GrammarChecker, constraint: JsonSchema | ToolCalls) -> None:
    asyncio.run(checker.check(constraint.grammars, "client"))


def test_what_passed_is_not_tried_again_and_other_schemas_are() -> None:
    tried: Any = Tried()
    checker = GrammarChecker(tried)
    for schema in ({"type": "integer"}, {"type": "integer"}, {"type": "string"}, {"type": "integer"}):
        check(checker, JsonSchema(schema, is_checked=False))
    assert len(tried.asked) == 2


def test_what_is_wrong_is_told_with_its_function_and_tried_again() -> None:
    tools = tuple(Tool(name=name, parameters={"type": "object"}) for name in ("f", "g"))
    calls = ToolCalls(ToolUse(tools=tools), is_checked=False)
    tried: Any = Tried((1, "it is odd"))
    checker = GrammarChecker(tried)
    for _ in range(2):
        with pytest.raises(UserError, match="the parameters of g: the JSON schema cannot be followed: it is odd"):
            check(checker, calls)
    assert [len(grammars) for grammars in tried.asked] == [3, 3]  # of each function, and of the whole
