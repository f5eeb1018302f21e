"""Constrained tool calls: random answers are words and whole, valid calls, and nothing else."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import reference_vlm
from vl2.errors import UserError
from vl2.infer.constraint import JsonSchema
from vl2.infer.constraint_tools import MAX_CALLS, ToolCalls, ToolCallsState
from vl2.process.tool_calls import START, Tool, ToolUse, call_text

TOKENIZER = reference_vlm("base").processor.tokenizer
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city"],
        "$defs": {"city": {"type": "string", "maxLength": 5}},
    },
    "set_light": {"type": "object", "properties": {"is_on": {"type": "boolean"}}, "required": ["is_on"]},
    "now": {},
}
TOOLS = tuple(Tool(name=name, parameters=schema) for name, schema in SCHEMAS.items())
# Every marker, name and key is fixed, so a whole call is found by its markers; strings here cannot hold one.
CALL = re.compile(r'<tool_call>\{"name": "([a-z_]+)", "arguments": (.*?)\}</tool_call>', re.DOTALL)


def draw(constraint: ToolCalls, seed: int, max_new_tokens: int, begin: str = "") -> tuple[str, bool]:
    """Return `begin` with tokens drawn from what is allowed, often those that end something, and whether it ended."""
    state, ids = begin_with(constraint, begin)
    rng = random.Random(seed)
    closing = {*TOKENIZER.encode('"'), *TOKENIZER.encode("}"), *TOKENIZER.encode('"}'), TOKENIZER.eos_id}
    for left in range(max_new_tokens, 0, -1):
        allowed = state.allowed(left).nonzero().flatten().tolist()
        assert allowed
        ends = [i for i in allowed if i in closing]
        token_id = rng.choice(ends if ends and rng.random() < 0.3 else allowed)
        if token_id == TOKENIZER.eos_id:
            return TOKENIZER.decode(ids), True
        ids.append(token_id)
        state.advance(token_id)
    return TOKENIZER.decode(ids), False


def begin_with(constraint: ToolCalls, text: str) -> tuple[ToolCallsState, list[int]]:
    """Return the state of an answer that begins with a text, spelled token by token as far as it is allowed."""
    state, ids = constraint.start(TOKENIZER, 1000), []
    for char in text:
        (token_id,) = TOKENIZER.encode(char)
        assert state.allowed(1000)[token_id], (text, char)
        state.advance(token_id)
        ids.append(token_id)
    return state, ids


def check(text: str) -> int:
    """Check that a text is whole calls, one a line, each valid under its schema, and return their number."""
    found = CALL.findall(text)
    assert CALL.sub("*", text) == "\n".join("*" * len(found))
    for name, arguments in found:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name] or {"maxProperties": 0})
    return len(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_a_required_answer_is_whole_valid_calls(seed: int, is_parallel: bool) -> None:
    constraint = ToolCalls(ToolUse(tools=TOOLS, is_required=True, is_parallel=is_parallel))
    text, has_ended = draw(constraint, seed, 400)
    if has_ended:
        assert 1 <= check(text) <= (MAX_CALLS if is_parallel else 1)


def test_random_answers_end_and_call_every_function() -> None:
    constraint = ToolCalls(ToolUse(tools=TOOLS, is_required=True))
    texts = [text for text, has_ended in (draw(constraint, seed, 400) for seed in range(40)) if has_ended]
    assert {name for text in texts for name, _ in CALL.findall(text)} == set(SCHEMAS)
    assert max(map(check, texts)) > 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["", "Let me see. ", "1 <tool_ 2 "]))
def test_after_the_marker_words_are_calls(seed: int, said: str) -> None:
    text, has_ended = draw(ToolCalls(ToolUse(tools=TOOLS)), seed, 400, begin=said + START)
    assert text.startswith(said + START)
    if has_ended:
        assert check(text.removeprefix(said)) >= 1


def test_words_are_free_until_a_marker_is_complete() -> None:
    constraint = ToolCalls(ToolUse(tools=TOOLS))
    state, _ = begin_with(constraint, "A <tool")
    assert state.allowed(9).all()  # tags of boxes and the end too
    state, _ = begin_with(constraint, START[:-1])
    refused = [i for i, is_allowed in enumerate(state.allowed(9).tolist()) if not is_allowed]
    texts = [TOKENIZER.token_bytes(i) for i in refused]
    assert refused
    assert all(text.startswith(b">") and len(text) > 1 for text in texts)
    copied = state.copy()
    (close,) = TOKENIZER.encode(">")
    state.advance(close)
    allowed = {TOKENIZER.token_bytes(i) for i in state.allowed(9).nonzero().flatten().tolist()}
    assert all(b'{"name": "'.startswith(text) or text.startswith(b'{"name": "') for text in allowed)
    assert copied.allowed(9)[TOKENIZER.eos_id]  # a copy goes on by itself


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_an_answer_with_a_schema_is_an_object_or_calls(seed: int) -> None:
    answer = JsonSchema({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                         "additionalProperties": False})  # fmt: skip
    text, has_ended = draw(ToolCalls(ToolUse(tools=TOOLS), answer), seed, 400)
    if has_ended and text.startswith("<"):
        assert check(text) >= 1
    elif has_ended:
        assert set(json.loads(text)) == {"ok"}


def test_properties_that_a_schema_does_not_name_are_not_written() -> None:
    use = ToolUse(tools=(Tool(name="f", parameters={"type": "object", "properties": {}}),), is_required=True)
    texts = {draw(ToolCalls(use), seed, 200)[0] for seed in range(10)}
    assert all(json.loads(arguments) == {} for text in texts for _, arguments in CALL.findall(text))


@pytest.mark.parametrize("schema", [{"type": "object", "not": {}}, {"$ref": "http://example.org/a.json"}])
def test_a_schema_that_cannot_be_followed_is_refused_with_the_name_of_its_function(schema: dict[str, Any]) -> None:
    tools = (*TOOLS, Tool(name="bad_one", parameters=schema))
    with pytest.raises(UserError, match="the parameters of bad_one: the JSON schema cannot be followed"):
        ToolCalls(ToolUse(tools=tools))


def test_the_outline_of_a_required_call_is_a_call() -> None:
    outline = ToolCalls(ToolUse(tools=TOOLS, is_required=True)).outline
    assert outline == call_text("get_weather", {"city": "", "days": 0})
    assert ToolCalls(ToolUse(tools=TOOLS)).outline == ""
