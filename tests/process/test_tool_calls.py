"""Tool calls as text: what is described is what was given, and what is written is read again, however it arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.errors import UserError
from vl2.process.conversation import ImageRef, Turn
from vl2.process.tool_calls import END, MAX_TOOL_CHARS, MAX_TOOLS, START, Tool, ToolCallReader, ToolUse, call_text

CITY = Tool(name="get_weather", description="Tell the weather.", parameters={"properties": {"city": {}}})
leaves = (
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([START, END, "}" + END, '"}', "\\", "{["])
)
objects = st.dictionaries(st.text(), st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
calls = st.lists(st.tuples(st.from_regex(r"[A-Za-z0-9_.:/-]{1,12}", fullmatch=True), objects), max_size=3)
words = st.text(max_size=12).filter(lambda text: START not in text and not text.endswith(tuple("<tool_call")))


def cut(text: str, sizes: list[int]) -> list[str]:
    """Divide a text into pieces of these lengths, over and over."""
    pieces, place = [], 0
    while place < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[place : place + size])
        place += size
    return pieces


@given(words, calls, st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_an_answer_is_read_as_it_was_written_however_it_is_cut(
    said: str, called: list[tuple[str, Any]], sizes: list[int]
) -> None:
    reader = ToolCallReader()
    read, pieces = "", []
    for piece in cut(said + "\n".join(call_text(name, value) for name, value in called), sizes):
        read += reader.push(piece)
        pieces += reader.take()
    read += reader.finish()
    assert read == said + "\n" * max(0, len(called) - 1)
    assert [(call.name, json.loads(call.arguments)) for call in reader.calls] == called
    assert not reader.is_in_call
    for index, call in enumerate(reader.calls):
        own = [piece for piece in pieces if piece.index == index]
        assert [piece.name for piece in own if piece.name is not None] == [call.name]
        assert own[0].name == call.name
        assert "".join(piece.arguments for piece in own) == call.arguments
        assert [piece.is_last for piece in own] == [False] * (len(own) - 1) + [True]


@given(calls.filter(bool), st.data())
def test_a_call_that_is_cut_off_is_not_among_the_whole_ones(called: list[tuple[str, Any]], data: st.DataObject) -> None:
    texts = [call_text(name, value) for name, value in called]
    text = "\n".join(texts)
    length = data.draw(st.integers(0, len(text) - 1))
    reader = ToolCallReader()
    reader.push(text[:length])
    reader.finish()
    num_whole = len([n for n in range(1, len(texts) + 1) if len("\n".join(texts[:n])) <= length])
    assert len(reader.calls) == num_whole
    rest = text[:length].removeprefix("\n".join(texts[:num_whole])).lstrip("\n")
    assert reader.is_in_call == rest.startswith(START)


def test_what_only_looks_like_a_marker_is_said_in_words() -> None:
    reader = ToolCallReader()
    assert reader.push("1 <tool") == "1 "
    assert reader.push("box> 2 <") == "<toolbox> 2 "
    assert reader.finish() == "<"
    assert reader.calls == []


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({"city": "Zürich"}, '{"city": "Zürich"}'),
        (' {"city":"Rome"} ', '{"city":"Rome"}'),
        (None, "{}"),
        ("", "{}"),
        ("print(1)", '"print(1)"'),
        ("[" * 100_000, json.dumps("[" * 100_000)),
    ],
)
def test_arguments_of_a_history_are_written_as_json(arguments: Any, written: str) -> None:
    assert call_text("f", arguments) == f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tool(name=""), "the name of a function has"),
        (lambda: Tool(name='a"b'), "the name of a function has"),
        (lambda: Tool(name="x" * 129), "the name of a function has"),
        (lambda: Tool(name="f", parameters={"type": "string"}), 'must have "type": "object"'),
        (lambda: ToolUse(tools=()), f"1 to {MAX_TOOLS} functions, got 0"),
        (lambda: ToolUse(tools=tuple(Tool(name=f"f{i}") for i in range(MAX_TOOLS + 1))), "got 129"),
        (lambda: ToolUse(tools=(Tool(name="f"), Tool(name="f"))), "the function f is given twice"),
        (lambda: ToolUse(tools=(Tool(name="f", description="x" * MAX_TOOL_CHARS),)), "characters together"),
    ],
)
def test_functions_that_cannot_be_offered_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_function_without_parameters_takes_none() -> None:
    for parameters in (None, {}):
        schema = Tool(name="now", parameters=parameters).parameters
        assert schema == {"type": "object", "properties": {}, "additionalProperties": False}


def test_the_functions_are_described_at_the_end_of_the_system_text() -> None:
    use = ToolUse(tools=(CITY, Tool(name="now")))
    user = Turn(role="user", pieces=(ImageRef(source="a.png"), "Weather?"))
    alone, together = use.describe_in([user]), use.describe_in([Turn(role="system", pieces=("Be brief.",)), user])
    assert alone == [Turn(role="system", pieces=(use.prompt(),)), user]
    assert together[0].text == f"Be brief.\n\n{use.prompt()}"
    assert together[1:] == [user]
    lines = use.prompt().splitlines()
    assert [json.loads(line)["name"] for line in lines[1:3]] == ["get_weather", "now"]
    assert START in lines[3]
    assert ToolUse(tools=(CITY,), is_required=True).prompt() != ToolUse(tools=(CITY,)).prompt()
