"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from vl2.serve.schema.answer_format import ChatFormat
from vl2.serve.schema.base import (
    Count,
    Metadata,
    Sampling,
    ShortText,
    Stop,
    StreamOptions,
    Strict,
    TextOnly,
    Unsupported,
)

Text = Annotated[str, Field(max_length=4_000_000)]
Source = Annotated[str, Field(min_length=1)]


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class ImageUrl(Strict):
    url: Annotated[Source, Field(description="a data URL, an http(s) URL, or a file in a folder that is served")]
    detail: Literal["auto", "low", "high", "original"] | None = None  # without effect: the tiling rule is the server's


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl | Source


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Strict):
    """One turn. Of an answer of this server that is sent back everything but its text is passed over."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part] | None = None
    name: ShortText | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    boxes: list[Any] | None = None
    reasoning_content: str | None = None
    audio: Unsupported
    function_call: Unsupported
    tool_calls: Unsupported

    def to_turn(self) -> Mapping[str, Any]:
        """Return the message as the processor reads it, with the sources of images as they came."""
        role = "system" if self.role == "developer" else self.role
        if not isinstance(self.content, list):
            return {"role": role, "content": self.content or ""}
        return {"role": role, "content": [_part(part) for part in self.content]}


def _part(part: TextPart | ImagePart) -> Mapping[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = part.image_url
    return {"type": "image", "image": url.url if isinstance(url, ImageUrl) else url}


class ChatRequest(Sampling):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stop | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ChatFormat | None = None
    # Beside OpenAI's: `<|det|>` lists that cannot be malformed.
    well_formed_boxes: bool | None = False
    # Taken and without effect here: they are about billing, caches and stores elsewhere.
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    parallel_tool_calls: bool | None = None
    modalities: TextOnly
    audio: Unsupported
    frequency_penalty: Unsupported
    function_call: Unsupported
    functions: Unsupported
    logit_bias: Unsupported
    prediction: Unsupported
    presence_penalty: Unsupported
    reasoning_effort: Unsupported
    tool_choice: Unsupported
    tools: Unsupported
    verbosity: Unsupported
    web_search_options: Unsupported
