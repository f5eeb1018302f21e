"""Convert clients' messages to turns of the chat template.

Message parts may be in either of OpenAI's formats; images may also be in formats of other APIs. The template does not
know tools, and allows one order of roles only. So a history is converted as follows:

- a tool call becomes text of the assistant, in the form of `vl2.process.tool_calls`, one line each;
- a tool's result becomes text of the user, `Result of NAME: CONTENT`, with its images;
- a system message after the first turn becomes text of the user at its position, and so does a system message without
  any other message;
- if the assistant speaks first, an empty turn of the user is put before it;
- consecutive messages of the assistant become one answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Discriminator, Field, Tag

from vl2.errors import UserError
from vl2.process.conversation import ImageRef, Piece, Turn
from vl2.serve.schema.base import Lenient, Unsupported, WithoutEffect

MAX_MESSAGES = 4096  # before answers in a row are joined; checking more would keep other requests waiting
Text = Annotated[str, Field(max_length=4_000_000)]
Source = Annotated[str, Field(min_length=1)]

_MEDIA_TYPE = re.compile(r"image/[\w.+-]{1,60}", re.ASCII)


class TextPart(Lenient):
    """A text. The type `output_text` is a part of an earlier answer that is sent back."""

    type: Literal["text", "input_text", "output_text"]
    text: Text
    annotations: WithoutEffect
    logprobs: WithoutEffect
    boxes: WithoutEffect
    blocks: WithoutEffect
    markdown: WithoutEffect

    def piece(self) -> Piece:
        return self.text


class RefusalPart(Lenient):
    type: Literal["refusal"]
    refusal: Text

    def piece(self) -> Piece:
        return self.refusal


class ThoughtPart(Lenient):
    """The reasoning of another model, which is ignored."""

    type: Literal["thinking", "redacted_thinking", "reasoning", "reasoning_text"]
    model_config = ConfigDict(extra="ignore")

    def piece(self) -> None:
        return None


class ImageUrl(Lenient):
    url: Annotated[Source, Field(description="a data URL, an http(s) URL, or a file in an allowed folder")]
    detail: WithoutEffect  # the tiling rule is the server's


class ImageUrlPart(Lenient):
    """An image in OpenAI's formats."""

    type: Literal["image_url", "input_image"]
    image_url: ImageUrl | Source
    detail: WithoutEffect
    file_id: Unsupported

    def piece(self) -> Piece:
        return ImageRef(source=_url_of(self.image_url))


class ImageSource(Lenient):
    """An image source in Anthropic's format."""

    type: Literal["base64", "url"]
    media_type: str | None = None
    data: Source | None = None
    url: Source | None = None


class ImagePart(Lenient):
    """An image in other formats: Anthropic's `source`, MCP's and LangChain's `data` with a media type, or `image`."""

    type: Literal["image"]
    image: ImageUrl | Source | None = None
    image_url: ImageUrl | Source | None = None
    url: Source | None = None
    source: ImageSource | None = None
    data: Annotated[Source | None, Field(validation_alias=AliasChoices("data", "base64"))] = None
    media_type: Annotated[str | None, Field(validation_alias=AliasChoices("media_type", "mime_type", "mimeType"))] = (
        None
    )
    source_type: WithoutEffect
    detail: WithoutEffect

    def piece(self) -> Piece:
        source = self.source
        given = self.image or self.image_url or self.url or (source.url if source else None)
        if given is not None:
            return ImageRef(source=_url_of(given))
        data = self.data or (source.data if source else None)
        if data is None:
            raise UserError("a part of type image needs image, image_url, source, or data with its media type")
        return ImageRef(source=_data_url(data, self.media_type or (source.media_type if source else None)))


def _url_of(value: ImageUrl | str) -> str:
    return value.url if isinstance(value, ImageUrl) else value


def _data_url(data: str, media_type: str | None) -> str:
    if data.startswith("data:"):
        return data
    # The media type appears in error messages only, because the image format is detected from the bytes.
    kind = media_type if media_type is not None and _MEDIA_TYPE.fullmatch(media_type) else "image/png"
    return f"data:{kind};base64,{data}"


# Tags of union branches. They begin with a capital letter, so that error messages omit them from field paths.
_TAGS = {
    **dict.fromkeys(("text", "input_text", "output_text"), "Text"),
    "refusal": "Refusal",
    **dict.fromkeys(("thinking", "redacted_thinking", "reasoning", "reasoning_text"), "Thought"),
    **dict.fromkeys(("image_url", "input_image"), "ImageUrl"),
    "image": "Image",
}


def _tag_of(part: Any) -> str | None:
    if isinstance(part, str):
        return "String"
    kind = part.get("type") if isinstance(part, Mapping) else getattr(part, "type", None)
    return _TAGS.get(kind) if isinstance(kind, str) else None


Part = Annotated[
    Annotated[TextPart, Tag("Text")]
    | Annotated[RefusalPart, Tag("Refusal")]
    | Annotated[ThoughtPart, Tag("Thought")]
    | Annotated[ImageUrlPart, Tag("ImageUrl")]
    | Annotated[ImagePart, Tag("Image")]
    | Annotated[Text, Tag("String")],
    Discriminator(
        _tag_of,
        custom_error_type="unknown_part",
        custom_error_message="the type of a part must be one of " + ", ".join(_TAGS) + ": the model reads text "
        "and images",
    ),
]


def content_of(content: str | Sequence[Part] | None) -> str | list[Piece]:
    """Convert message content to the content of a turn. Image sources are not opened."""
    if content is None or isinstance(content, str):
        return content or ""
    pieces = (part if isinstance(part, str) else part.piece() for part in content)
    return [piece for piece in pieces if piece is not None]


Role = Literal["system", "user", "assistant"]
Content = str | list[Piece]  # one text, or pieces that the template separates by line breaks


def result_content(name: str | None, content: Content) -> Content:
    """Return the content that stands for a tool's result."""
    head = f"Result of {name or 'a tool'}:"
    if isinstance(content, str):
        return f"{head} {content}".rstrip()
    return [f"{head} ", *content]


def order_turns(messages: Iterable[tuple[Role, Content]]) -> list[Turn]:
    """Convert messages to turns in the template's order. Raise UserError for an image outside a user message."""
    given = list(messages)
    for index, (role, content) in enumerate(given):
        if role != "user" and any(isinstance(piece, ImageRef) for piece in content):
            raise UserError(f"message {index}: images belong in user messages, not in one of the {role}")
    has_others = any(role != "system" for role, _ in given)
    ordered: list[tuple[Role, list[Piece]]] = []
    for role, content in given:
        pieces: list[Piece] = [content] if isinstance(content, str) else list(content)
        before = ordered[-1][0] if ordered else None
        if role == "system" and (before not in (None, "system") or not has_others):
            ordered.append(("user", pieces))
        elif role == "assistant" and before == "assistant":
            ordered[-1][1].extend(pieces)
        else:
            if role == "assistant" and before != "user":
                ordered.append(("user", []))
            ordered.append((role, pieces))
    return [Turn(role=role, pieces=tuple(pieces)) for role, pieces in ordered]
