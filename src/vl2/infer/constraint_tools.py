"""Constrained decoding of tool calls: an answer in words, calls of functions, or words and then calls.

In words everything is allowed that is allowed without a constraint. As soon as the start marker is complete, a grammar
(library: llguidance) allows only whole calls of the given functions, with arguments that are valid under their schemas.
"""

from __future__ import annotations

import json
from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.infer.constraint import (
    JSON_STYLE,
    Grammars,
    JsonSchema,
    JsonState,
    check_grammar,
    close_schema,
    llguidance_tokenizer,
    start_matcher,
)
from vl2.process.tokenizer import Tokenizer
from vl2.process.tool_calls import END, START, Tool, ToolUse, call_head, call_text

MAX_CALLS = 8  # in one answer: a model that is lost would call without end


class ToolCalls:
    """The constraint that an answer calls the functions of a `ToolUse` only as they may be called.

    Where a call is not required, the answer may be in words instead, or valid under the schema of `answer` if that is
    given. Objects of the arguments have no properties that their schemas do not name, unless they say otherwise.
    Raise UserError, which names the function, for a schema that cannot be followed.
    """

    def __init__(self, use: ToolUse, answer: JsonSchema | None = None, *, is_checked: bool = True) -> None:
        """With `is_checked=False` the grammars are not checked yet: a server does that in a process with limits."""
        self.use, self.answer = use, answer
        schemas = [_arguments_schema(tool, is_checked=is_checked) for tool in use.tools]
        first = schemas[0].outline or "{}"
        self.outline = call_text(use.tools[0].name, first) if use.is_required else answer.outline if answer else ""
        self._has_words = not use.is_required and answer is None
        self._grammar = self._write_grammar(schemas)
        of_tools = zip(use.tools, schemas, strict=True)
        own = [(_head(tool), grammar) for tool, schema in of_tools for _, grammar in schema.grammars]
        self.grammars: Grammars = (*own, ("", self._grammar))
        if is_checked:
            check_grammar(self._grammar)

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> ToolCallsState:
        del max_new_tokens  # a call that is cut off is no call, and its answer gets the finish reason "length"
        calls = JsonState(start_matcher(tokenizer, self._grammar))
        return ToolCallsState(_vocabulary(tokenizer), calls, is_in_words=self._has_words)

    def _write_grammar(self, schemas: list[JsonSchema]) -> str:
        """Return a grammar in Lark's syntax. Where words may come first, it begins after the first start marker."""
        most = MAX_CALLS if self.use.is_parallel else 1
        more = f"({json.dumps(chr(10) + START)} call){{0,{most - 1}}}" if most > 1 else ""
        calls = f"call {more}" if self._has_words else f"{json.dumps(START)} call {more}"
        rules = ["%llguidance {}"]
        if self.answer is None or self.use.is_required:
            rules.append(f"start: {calls}")
        else:
            rules += ["start: answer | calls", f"calls: {calls}", f"answer: {_embedded(self.answer)}"]
        rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(schemas))))
        for index, (tool, schema) in enumerate(zip(self.use.tools, schemas, strict=True)):
            head, tail = json.dumps(call_head(tool.name)), json.dumps("}" + END)
            rules.append(f"call_{index}: {head} {_embedded(schema)} {tail}")
        return "\n".join(rules)


def _head(tool: Tool) -> str:
    return f"the parameters of {tool.name}: "


def _arguments_schema(tool: Tool, *, is_checked: bool) -> JsonSchema:
    closed = close_schema(tool.parameters)
    assert isinstance(closed, dict)
    try:
        return JsonSchema(closed, is_checked=is_checked)
    except UserError as error:
        raise UserError(f"{_head(tool)}{error}") from None


def _embedded(schema: JsonSchema) -> str:
    """Return a schema as a part of a grammar, in the style of JSON that answers have."""
    return "%json " + json.dumps({**json.loads(schema.text), "x-guidance": JSON_STYLE})


class Vocabulary:
    """The bytes of each id, and the ids that could go beyond the end of a start marker."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bytes = [tokenizer.token_bytes(i) for i in range(tokenizer.num_ids)]
        self.every = torch.ones(len(self.bytes), dtype=torch.bool)
        self.beyond = [(i, b) for i, b in enumerate(self.bytes) if START[-1:].encode() in b[:-1]]


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def prepare_tools(tokenizer: Tokenizer) -> None:
    """Build in advance what the first constraint on tool calls would build."""
    _vocabulary(tokenizer)
    llguidance_tokenizer(tokenizer)


class ToolCallsState:
    """The state of one answer: in words before the first call, or in the calls."""

    num_to_finish = 0  # no number of tokens is always enough for a schema, so an answer may be cut anywhere

    def __init__(self, vocabulary: Vocabulary, calls: JsonState, *, is_in_words: bool) -> None:
        self._vocabulary, self._calls, self._is_in_words = vocabulary, calls, is_in_words
        self._tail = b""  # the last bytes, in which a start marker may have begun

    def allowed(self, num_left: int) -> Tensor:
        if not self._is_in_words:
            return self._calls.allowed(num_left)
        mask = self._vocabulary.every.clone()
        marker = START.encode()
        # The grammar begins exactly after the marker, so no token may go on beyond it.
        passing = [i for i, b in self._vocabulary.beyond if marker in (self._tail + b)[:-1]]
        mask[passing] = False
        return mask

    def advance(self, token_id: int) -> None:
        if not self._is_in_words:
            self._calls.advance(token_id)
            return
        text = self._tail + self._vocabulary.bytes[token_id]
        self._is_in_words = not text.endswith(START.encode())
        self._tail = text[1 - len(START) :]

    def copy(self) -> ToolCallsState:
        copied = copy(self)
        copied._calls = self._calls.copy()
        return copied
