"""The body of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from vl2.serve.schema.answer_format import ResponsesFormat
from vl2.serve.schema.base import Count, Metadata, Sampling, ShortText, StreamOptions, Strict, Unsupported
from vl2.serve.schema.chat import Source, Text


class InputText(Strict):
    type: Literal["input_text"]
    text: Text


class InputImage(Strict):
    type: Literal["input_image"]
    image_url: Source
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: Unsupported


class OutputText(Strict):
    """A part of an answer that is sent back."""

    type: Literal["output_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    boxes: list[Any] | None = None


InputPart = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]


class InputMessage(Strict):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[InputPart]
    id: ShortText | None = None
    status: ShortText | None = None
    phase: ShortText | None = None

    def to_turn(self) -> Mapping[str, Any]:
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": [_part(part) for part in self.content]}


def _part(part: InputText | InputImage | OutputText) -> Mapping[str, Any]:
    if isinstance(part, InputImage):
        return {"type": "image", "image": part.image_url}
    return {"type": "text", "text": part.text}


class TextOptions(Strict):
    format: ResponsesFormat | None = None
    verbosity: Unsupported


class ResponsesRequest(Sampling):
    input: Text | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    text: TextOptions | None = None
    stream_options: StreamOptions | None = None
    # Beside OpenAI's.
    well_formed_boxes: bool | None = False
    # Taken and without effect here.
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    include: Unsupported
    conversation: Unsupported
    max_tool_calls: Unsupported
    previous_response_id: Unsupported
    prompt: Unsupported
    reasoning: Unsupported
    tool_choice: Unsupported
    tools: Unsupported
    top_logprobs: Unsupported

    def turns(self) -> list[Mapping[str, Any]]:
        """Return the conversation as the processor reads it."""
        turns: list[Mapping[str, Any]] = []
        if self.instructions is not None:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*turns, {"role": "user", "content": self.input}]
        return [*turns, *(message.to_turn() for message in self.input)]
