"""The request body of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from vl2.process.conversation import Turn
from vl2.process.tool_calls import ToolUse, call_text
from vl2.serve.schema.base import (
    ChatFormat,
    ConversationRequest,
    Count,
    Effort,
    Functions,
    Ignored,
    Lenient,
    NoFunctionCall,
    Stop,
    StreamOptions,
    TextOnly,
    Verbosity,
    WithoutEffect,
)
from vl2.serve.schema.tools import ToolChoice, Tools, tool_use
from vl2.serve.schema.turns import MAX_MESSAGES, Content, Part, Role, Text, content_of, order_turns, result_content


class FunctionCall(Lenient):
    name: Text | None = None
    arguments: Any = None  # a JSON string; some clients send the decoded value


class CustomCall(Lenient):
    name: Text | None = None
    input: Any = None


class ToolCall(Lenient):
    """A tool call in the history of a conversation."""

    id: str | None = None
    type: WithoutEffect
    index: WithoutEffect
    function: FunctionCall | None = None
    custom: CustomCall | None = None

    @property
    def name(self) -> str | None:
        return self.function.name if self.function else self.custom.name if self.custom else None

    def text(self) -> str:
        if self.function is not None:
            return call_text(self.name, self.function.arguments)
        return call_text(self.name, self.custom.input if self.custom else None)


class ChatMessage(Lenient):
    """A message. Of an earlier answer that is sent back, only the text and the tool calls are used."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    name: Text | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    refusal: Text | None = None
    annotations: WithoutEffect
    boxes: WithoutEffect
    blocks: WithoutEffect
    markdown: WithoutEffect
    reasoning_content: WithoutEffect
    reasoning: WithoutEffect
    audio: WithoutEffect

    def calls(self) -> list[str]:
        calls = [call.text() for call in self.tool_calls or ()]
        if self.function_call is not None:
            calls.append(call_text(self.function_call.name, self.function_call.arguments))
        return calls


def read_history(messages: Sequence[ChatMessage]) -> Iterator[tuple[Role, Content]]:
    """Yield (role, content) of each message, with tool calls and their results as text."""
    names: dict[str, str] = {}
    for message in messages:
        content = content_of(message.content)
        for call in message.tool_calls or ():
            if call.id and call.name:
                names[call.id] = call.name
        if message.role in ("tool", "function"):
            yield "user", result_content(message.name or names.get(message.tool_call_id or ""), content)
        elif message.role == "assistant":
            yield "assistant", _answer(content or message.refusal or "", message.calls())
        else:
            yield "user" if message.role == "user" else "system", content


def _answer(content: Content, calls: Sequence[str]) -> Content:
    if not calls:
        return content
    if isinstance(content, str):
        return "\n".join([content, *calls] if content else calls)
    return [*content, *calls]


MAX_PREDICTION_CHARS = 65_536


class PredictedText(Lenient):
    type: Literal["text"] = "text"
    text: Annotated[str, Field(max_length=MAX_PREDICTION_CHARS)]


class Prediction(Lenient):
    """What the answer will probably say. It is faster where it does, and the same in any case."""

    type: Literal["content"] = "content"
    content: (
        Annotated[str, Field(max_length=MAX_PREDICTION_CHARS)] | Annotated[list[PredictedText], Field(max_length=100)]
    )

    @property
    def text(self) -> str:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return text[:MAX_PREDICTION_CHARS]


class ChatRequest(ConversationRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stop | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ChatFormat | None = None
    prediction: Prediction | None = None
    modalities: TextOnly
    tools: Tools = None
    tool_choice: ToolChoice = None
    function_call: NoFunctionCall
    functions: Functions
    audio: Ignored
    reasoning_effort: Effort
    verbosity: Verbosity
    web_search_options: Ignored

    def tool_use(self) -> ToolUse | None:
        """Return the functions that may be called. Raise ApiError for a choice that is impossible."""
        return tool_use(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls is not False)

    def turns(self) -> list[Turn]:
        """Return the conversation's turns in the order that the chat template needs."""
        return order_turns(read_history(self.messages))
