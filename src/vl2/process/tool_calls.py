"""Tool calls as text: how functions are described to the model, and how its calls are written and read.

A call is `<tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>`, each on a line of its own. The released models
were not trained to call functions and have no template for it. The text is the one of the Hermes format, which other
open models use; the description of the functions is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vl2.errors import UserError
from vl2.process.conversation import Turn

START, END = "<tool_call>", "</tool_call>"
MAX_TOOLS = 128
MAX_TOOL_CHARS = 100_000  # of all names, descriptions and schemas of a request together

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of its arguments, which are one object.

    Without parameters, or with an empty schema, the function takes none. Raise UserError for an invalid name or a
    schema of another type.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"the name of a function has 1 to 128 letters, digits or any of _ . : / -, got {self.name!r}"
            )
        schema = self.parameters or _NO_PARAMETERS
        if schema.get("type", "object") != "object":
            raise UserError(f'the parameters of {self.name} must have "type": "object", got {schema["type"]!r}')
        object.__setattr__(self, "parameters", {"type": "object", **schema})

    def to_json(self) -> str:
        """Return the description that the model reads, as JSON in one line."""
        about = {"description": self.description} if self.description else {}
        return json.dumps({"name": self.name, **about, "parameters": self.parameters}, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """The functions of a request, and how they may be used. Raise UserError for too many, or a name given twice."""

    tools: tuple[Tool, ...]
    is_required: bool = False  # the answer must be a call
    is_parallel: bool = True  # one answer may have several calls

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if not 0 < len(names) <= MAX_TOOLS:
            raise UserError(f"there may be 1 to {MAX_TOOLS} functions, got {len(names)}")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"the function {twice} is given twice")
        if (num_chars := sum(len(tool.to_json()) for tool in self.tools)) > MAX_TOOL_CHARS:
            raise UserError(f"the functions may take {MAX_TOOL_CHARS} characters together, got {num_chars}")

    def prompt(self) -> str:
        """Return the text that describes the functions to the model."""
        example = f'{START}{{"name": NAME, "arguments": OBJECT}}{END}'
        if self.is_required:
            how = f"Answer with a call, in this form: {example}"
        else:
            how = f"To call one, write {example}. If none is needed, answer in words."
        return "\n".join(["You can call these functions:", *(tool.to_json() for tool in self.tools), how])

    def describe_in(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return a conversation in which the functions are described, at the end of the system text."""
        if turns and turns[0].role == "system":
            return [replace(turns[0], pieces=(*turns[0].pieces, "\n\n", self.prompt())), *turns[1:]]
        return [Turn(role="system", pieces=(self.prompt(),)), *turns]


def call_head(name: str) -> str:
    """Return a call up to its arguments, without the start marker."""
    return f'{{"name": {json.dumps(name)}, "arguments": '


def call_text(name: str | None, arguments: object) -> str:
    """Return the text of a call. The arguments are a value, or a string that holds JSON or any other text."""
    written = json.dumps({} if arguments in (None, "") else arguments, ensure_ascii=False)
    if isinstance(arguments, str) and _is_json(arguments):
        written = arguments.strip()
    return f"{START}{call_head(name or 'function')}{written}}}{END}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A whole call of an answer. `arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class CallPiece:
    """New text of a call while it is generated."""

    index: int  # of the call, from 0
    name: str | None = None  # in the first piece of a call
    arguments: str = ""  # what follows the arguments so far
    is_last: bool = False  # the call is whole


class ToolCallReader:
    """Divides the text of an answer, as it arrives, into words and calls.

    The answer must follow the constraint `vl2.infer.constraint_tools.ToolCalls`, so that every start marker begins a
    well-formed call. The answer may end anywhere.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []  # whole calls
        self._place: Literal["words", "head", "arguments", "tail"] = "words"
        self._pending = ""
        self._name = self._arguments = ""
        self._depth, self._is_in_string, self._is_escaped = 0, False, False
        self._pieces: list[CallPiece] = []

    @property
    def is_in_call(self) -> bool:
        """Tell whether a call has begun and is not whole."""
        return self._place != "words"

    def push(self, text: str) -> str:
        """Add text of the answer, and return the words that are now certain. `take` returns what belongs to calls."""
        self._pending += text
        words = ""
        while True:
            before = (self._place, len(self._pending))
            words += self._step()
            if (self._place, len(self._pending)) == before:
                return words

    def finish(self) -> str:
        """Return words that were held back because they might have begun a call."""
        held, self._pending = (self._pending, "") if self._place == "words" else ("", self._pending)
        return held

    def take(self) -> list[CallPiece]:
        """Return the pieces of calls since the last time."""
        taken, self._pieces = self._pieces, []
        return taken

    def _step(self) -> str:
        """Read as much as belongs to the current place, and return the words in it."""
        if self._place == "words":
            words, marker, rest = self._pending.partition(START)
            held = "" if marker else _begun_marker(words)
            self._pending = rest if marker else held
            self._place = "head" if marker else "words"
            return words.removesuffix(held)
        if self._place == "head":
            head, middle, rest = self._pending.partition(', "arguments": ')
            if middle:
                self._name = json.loads(head + "}")["name"]
                self._pending, self._arguments, self._place = rest, "", "arguments"
                self._pieces.append(CallPiece(index=len(self.calls), name=self._name))
        elif self._place == "arguments":
            self._read_arguments()
        elif len(self._pending) >= len("}" + END):
            self._pending, self._place = self._pending[len("}" + END) :], "words"
            self._pieces.append(CallPiece(index=len(self.calls), is_last=True))
            self.calls.append(ToolCall(name=self._name, arguments=self._arguments))
        return ""

    def _read_arguments(self) -> None:
        end = next((i for i, char in enumerate(self._pending, start=1) if self._ends_arguments(char)), None)
        new = self._pending[:end]
        self._pending = self._pending[len(new) :]
        self._arguments += new
        if new:
            self._pieces.append(CallPiece(index=len(self.calls), arguments=new))
        if end is not None:
            self._place = "tail"

    def _ends_arguments(self, char: str) -> bool:
        if self._is_in_string:
            self._is_in_string = self._is_escaped or char != '"'
            self._is_escaped = char == "\\" and not self._is_escaped
            return False
        self._is_in_string = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        return self._depth == 0 and char == "}"


def _begun_marker(text: str) -> str:
    """Return the longest end of a text that may begin a marker, "" if there is none."""
    lengths = range(min(len(START) - 1, len(text)), 0, -1)
    return next((text[-n:] for n in lengths if text.endswith(START[:n])), "")
