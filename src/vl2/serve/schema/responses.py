"""The request body of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from vl2.process.conversation import Turn
from vl2.process.tool_calls import ToolUse, call_text
from vl2.serve.ignored import IgnoredUnless
from vl2.serve.schema.base import (
    ConversationRequest,
    Count,
    Lenient,
    ResponsesFormat,
    StreamOptions,
    Unsupported,
    Verbosity,
    WithoutEffect,
)
from vl2.serve.schema.tools import ToolChoice, Tools, tool_use
from vl2.serve.schema.turns import MAX_MESSAGES, Content, Part, Role, Text, content_of, order_turns, result_content


class InputMessage(Lenient):
    """A message of the user, the assistant or the system."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    id: WithoutEffect
    status: WithoutEffect
    phase: WithoutEffect


class InputCall(Lenient):
    """A tool call in the history of a conversation."""

    type: Literal["function_call", "custom_tool_call"]
    name: Text | None = None
    arguments: Any = None
    input: Any = None
    call_id: str | None = None
    id: WithoutEffect
    status: WithoutEffect


class InputResult(Lenient):
    """The result of a tool call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str | None = None
    output: Text | list[Part] | None = None
    id: WithoutEffect
    status: WithoutEffect


class InputThought(Lenient):
    """The reasoning of another model, which is ignored."""

    type: Literal["reasoning"]
    id: WithoutEffect
    status: WithoutEffect
    summary: WithoutEffect
    content: WithoutEffect
    encrypted_content: WithoutEffect


_TAGS = {
    "message": "Message",
    "function_call": "Call",
    "custom_tool_call": "Call",
    "function_call_output": "Result",
    "custom_tool_call_output": "Result",
    "reasoning": "Thought",
}


def _tag_of(item: Any) -> str | None:
    kind = item.get("type") if isinstance(item, Mapping) else getattr(item, "type", None)
    if kind is None:
        return "Message"
    return _TAGS.get(kind) if isinstance(kind, str) else None


Item = Annotated[
    Annotated[InputMessage, Tag("Message")]
    | Annotated[InputCall, Tag("Call")]
    | Annotated[InputResult, Tag("Result")]
    | Annotated[InputThought, Tag("Thought")],
    Discriminator(
        _tag_of,
        custom_error_type="unknown_item",
        custom_error_message="the type of an item must be one of " + ", ".join(_TAGS) + "; the server stores nothing, "
        "so an earlier item cannot be referenced: send it whole",
    ),
]


class TextOptions(Lenient):
    format: ResponsesFormat | None = None
    verbosity: Verbosity


def _has_no_effort(body: Any, value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    return all(given in (None, "none") for given in value.values())


def _check_background(value: Any) -> Any:
    if value not in (None, False):
        raise ValueError("the server stores nothing: the answer is sent on the connection of its request only")
    return value


class ResponsesRequest(ConversationRequest):
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    text: TextOptions | None = None
    stream_options: StreamOptions | None = None
    max_tool_calls: WithoutEffect
    background: Annotated[Any, AfterValidator(_check_background), Field(default=None)]
    conversation: Unsupported
    previous_response_id: Unsupported
    prompt: Unsupported
    tools: Tools = None
    tool_choice: ToolChoice = None
    reasoning: Annotated[Any, IgnoredUnless(_has_no_effort), Field(default=None)]
    include: Annotated[Any, IgnoredUnless(lambda body, value: value in (None, [])), Field(default=None)]
    truncation: Annotated[Any, IgnoredUnless(lambda body, value: value in (None, "disabled")), Field(default=None)]
    top_logprobs: Annotated[Any, IgnoredUnless(lambda body, value: value in (None, 0)), Field(default=None)]

    def tool_use(self) -> ToolUse | None:
        """Return the functions that may be called. Raise ApiError for a choice that is impossible."""
        return tool_use(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)

    def turns(self) -> list[Turn]:
        """Return the conversation's turns in the order that the chat template needs."""
        return order_turns(self._history())

    def _history(self) -> Iterator[tuple[Role, Content]]:
        if self.instructions is not None:
            yield "system", self.instructions
        if isinstance(self.input, str):
            yield "user", self.input
            return
        names: dict[str, str] = {}
        for item in self.input:
            if isinstance(item, InputMessage):
                role: Role = "system" if item.role == "developer" else item.role
                yield role, content_of(item.content)
            elif isinstance(item, InputCall):
                if item.call_id and item.name:
                    names[item.call_id] = item.name
                yield "assistant", call_text(item.name, item.input if item.arguments is None else item.arguments)
            elif isinstance(item, InputResult):
                yield "user", result_content(names.get(item.call_id or ""), content_of(item.output))
