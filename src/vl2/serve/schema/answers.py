"""The body of an answer of `/v1/chat/completions`, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class AnswerBox(BaseModel):
    """A box of an answer: corners x0, y0, x1, y1."""

    label: str
    xyxy_px: list[float] = Field(description="in pixels of the upright image")
    center_px: list[float] = Field(description="x and y of the center, in pixels of the upright image")
    xyxy_999: list[int] = Field(description="in 999ths of the image's width and height, as the model wrote it")
    image_index: int = Field(description="counted over the conversation, from 0")


class AnswerBlock(BaseModel):
    """A block of a page that a model of the DeepSeek-OCR family has read."""

    type: str = Field(description='"title", "text", "table", "image" and the like, in the words of the model')
    text: str = Field(description="Markdown, or HTML for a table; empty for a picture")
    boxes_px: list[list[float]] = Field(description="x0, y0, x1, y1 in pixels of the upright page; usually one box")
    boxes_999: list[list[int]]
    page: int = Field(description="from 0; pages are the last images of the conversation")


class AnswerFunction(BaseModel):
    name: str
    arguments: str = Field(description="an object that is valid under the function's schema, as JSON text")


class AnswerCall(BaseModel):
    """A call of a function. In a stream, the arguments come in pieces."""

    id: str
    type: Literal["function"]
    function: AnswerFunction


class AnswerMessage(BaseModel):
    """The message of an answer. In a stream, the last chunk of a choice has boxes, markdown and blocks in its delta."""

    role: Literal["assistant"]
    content: str | None = Field(description="with the grounding tags; null if the answer is calls only")
    tool_calls: list[AnswerCall] | None = Field(default=None, description="the calls that are whole")
    refusal: None
    boxes: list[AnswerBox]
    markdown: str | None = Field(default=None, description="the text without tags; DeepSeek-OCR family only")
    blocks: list[AnswerBlock] | None = Field(default=None, description="DeepSeek-OCR family only")


class AnswerChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """An answer in OpenAI's format, with boxes."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: dict[str, Any]
