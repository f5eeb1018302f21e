"""Messages as people write them to turns as the template needs them. Everything malformed is refused here.

Two forms are read. OpenAI's: role and content, content a string or a list of parts; a literal `<image>`
in it is text. The released one, known by an `images` key or a role like `<|User|>`: each `<image>` in
the content stands for the next of the message's images, and any special token's text is that token.

In both a message of the role "document", alone, is no conversation: its texts and images are joined as they are,
without a template.

Golden: `messages` in tests/golden/reference/processor/conversations_*.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vl2.errors import UserError
from vl2.process.image import ImageSource, is_image_source
from vl2.process.tokenizer import ASSISTANT, IMAGE, USER, Specials

Role = Literal["system", "user", "assistant", "document"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "document": "document",
    "<|System|>": "system",
    USER: "user",
    ASSISTANT: "assistant",
}
_RELEASED_ROLES = ("<|System|>", USER, ASSISTANT)
_TEXT_PARTS = ("text", "input_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
# Keys that people put beside the content by mistake; ignoring them would drop their picture.
_MISPLACED = ("image", "image_url", "image_urls", "parts")


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """The place of one image in a turn."""

    source: ImageSource


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says, in one go: text and images in order, images in user turns and documents only."""

    role: Role
    pieces: tuple[str | ImageRef, ...]
    specials: Specials = "grounding"  # which special tokens the text may contain

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return tuple(piece.source for piece in self.pieces if isinstance(piece, ImageRef))

    @property
    def text(self) -> str:
        """The text alone."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))


def normalize(messages: object) -> list[Turn]:
    """Return the turns: at most one system turn, then user and assistant in alternation, stripped of outer space.

    Neighbouring messages of the user (or of the system) are joined by a newline. UserError names the
    message by its index.
    """
    checked = _check_list(messages)
    is_released = any(_is_released(message) for message in checked)
    turns: list[Turn] = []
    for index, message in enumerate(checked):
        role = _role(message, index)
        _refuse_misplaced(message, index)
        if role == "document":
            return [_document(checked)]
        pieces = _released_pieces(message, role, index) if is_released else _openai_pieces(message, role, index)
        turn = Turn(role=role, pieces=pieces, specials="all" if is_released else "grounding")
        previous = turns[-1] if turns else None
        _check_order(previous, role, index)
        if previous is not None and previous.role == role:
            turns[-1] = replace(previous, pieces=_merge((*previous.pieces, "\n", *turn.pieces)))
        else:
            turns.append(turn)
    if turns[-1].role == "system":
        raise UserError("a conversation needs at least one user message, got only a system message")
    return [replace(turn, pieces=_strip(turn.pieces)) for turn in turns]


def _document(messages: Sequence[Mapping[str, Any]]) -> Turn:
    """Return the one turn of a document, its texts unstripped. UserError unless it stands alone."""
    if len(messages) > 1:
        raise UserError(f"a document must be the only message, got {len(messages)} messages")
    [message] = messages
    is_released = _is_released(message)
    pieces = _released_pieces(message, "document", 0) if is_released else _merge(_parts(message.get("content"), 0))
    if not pieces:
        raise UserError("message 0: the document is empty")
    return Turn(role="document", pieces=pieces, specials="all" if is_released else "grounding")


def released_prompt(text: object, images: object = ()) -> tuple[str | ImageRef, ...]:
    """Return the pieces of a raw prompt in which each `<image>` stands for the next image."""
    if not isinstance(text, str):
        raise UserError(f"a prompt must be a string, got {_kind(text)}")
    return _split_placeholders(text, _check_images(images, "the prompt"), "the prompt")


def _check_list(messages: object) -> list[Mapping[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes | bytearray):
        raise UserError(f"messages must be a list of messages, got {_kind(messages)}")
    if not messages:
        raise UserError("messages must hold at least one message, got an empty list")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"message {index} must be a mapping with role and content, got {_kind(message)}")
    return list(messages)


def _is_released(message: Mapping[str, Any]) -> bool:
    role = message.get("role")
    return message.get("images") is not None or (isinstance(role, str) and role in _RELEASED_ROLES)


def _role(message: Mapping[str, Any], index: int) -> Role:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        given = repr(role[:40]) if isinstance(role, str) else _kind(role)
        raise UserError(
            f"message {index}: role must be user, assistant or system ({USER} and {ASSISTANT} too) or document, "
            f"got {given}"
        )
    return _ROLES[role]


def _refuse_misplaced(message: Mapping[str, Any], index: int) -> None:
    for key in _MISPLACED:
        if message.get(key) is not None:
            raise UserError(f"message {index}: {key!r} belongs into a part of the content, not beside it")


def _check_order(previous: Turn | None, role: Role, index: int) -> None:
    before = previous.role if previous is not None else None
    if role == "system" and before not in (None, "system"):
        raise UserError(f"message {index}: a system message must come before all others")
    if role == "assistant" and before != "user":
        what = "another assistant message" if before == "assistant" else "no user message"
        raise UserError(f"message {index}: an assistant message must follow a user message, here it follows {what}")


def _released_pieces(message: Mapping[str, Any], role: Role, index: int) -> tuple[str | ImageRef, ...]:
    text = message.get("content")
    if not isinstance(text, str):
        raise UserError(
            f"message {index}: content must be a string beside an images list or a role like {USER}, got {_kind(text)}"
        )
    where = f"message {index}"
    images = message.get("images")
    sources = _check_images(() if images is None else images, where)
    if role not in ("user", "document") and (sources or IMAGE in text):
        raise _misplaced_image(role, index)
    return _split_placeholders(text, sources, where)


def _check_images(images: object, where: str) -> list[ImageSource]:
    if not isinstance(images, Sequence) or isinstance(images, str | bytes | bytearray | memoryview):
        raise UserError(f"{where}: images must be a list, got {_kind(images)}")
    for position, source in enumerate(images):
        if not is_image_source(source):
            raise UserError(f"{where}: image {position} must be {_SOURCES}, got {_kind(source)}")
    return list(images)


_SOURCES = "a path, URL, data URL, bytes, open file or PIL image"


def _split_placeholders(text: str, sources: Sequence[ImageSource], where: str) -> tuple[str | ImageRef, ...]:
    texts = text.split(IMAGE)
    if len(texts) - 1 != len(sources):
        raise UserError(f"{where}: {len(texts) - 1} {IMAGE} in the text, but {len(sources)} images")
    pieces: list[str | ImageRef] = [texts[0]]
    for source, following in zip(sources, texts[1:], strict=True):
        pieces += [ImageRef(source=source), following]
    return _merge(pieces)


def _openai_pieces(message: Mapping[str, Any], role: Role, index: int) -> tuple[str | ImageRef, ...]:
    content = message.get("content")
    parts = _parts(content, index)
    if isinstance(content, str):
        return _merge(parts)
    if role != "user" and any(isinstance(part, ImageRef) for part in parts):
        raise _misplaced_image(role, index)
    return _lay_out([part for part in parts if part != ""])


def _parts(content: object, index: int) -> list[str | ImageRef]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray | memoryview):
        raise UserError(f"message {index}: content must be a string or a list of parts, got {_kind(content)}")
    return [_part(part, f"message {index}, part {position}") for position, part in enumerate(content)]


def _misplaced_image(role: Role, index: int) -> UserError:
    return UserError(f"message {index}: images belong into user messages, not into one of the {role}")


def _part(part: object, where: str) -> str | ImageRef:
    if not isinstance(part, Mapping):
        raise UserError(f"{where} must be a mapping with a type, got {_kind(part)}")
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXT_PARTS:
        text = part.get("text")
        if not isinstance(text, str):
            raise UserError(f"{where}: text must be a string, got {_kind(text)}")
        return text
    if isinstance(kind, str) and kind in _IMAGE_PARTS:
        return ImageRef(source=_part_source(part, kind, where))
    allowed = ", ".join((*_TEXT_PARTS, *_IMAGE_PARTS))
    given = repr(kind[:40]) if isinstance(kind, str) else _kind(kind)
    raise UserError(f"{where}: type must be one of {allowed}, got {given}")


def _part_source(part: Mapping[str, Any], kind: str, where: str) -> ImageSource:
    key = "image" if kind == "image" else "image_url"
    source = part.get(key)
    if key == "image_url":
        if isinstance(source, Mapping):
            source, key = source.get("url"), "image_url.url"
        if not isinstance(source, str):
            raise UserError(f"{where}: {key} must be a string, got {_kind(source)}")
    if not is_image_source(source):
        raise UserError(f"{where}: {key} must be {_SOURCES}, got {_kind(source)}")
    found: ImageSource = source  # type: ignore[assignment]  # checked just above
    return found


def _lay_out(parts: Sequence[str | ImageRef]) -> tuple[str | ImageRef, ...]:
    """Put a newline between neighbouring parts that no white space divides, as the released prompts do."""
    pieces: list[str | ImageRef] = []
    for part in parts:
        if pieces:
            before = pieces[-1]
            is_divided = (isinstance(before, str) and before[-1].isspace()) or (
                isinstance(part, str) and part[0].isspace()
            )
            if not is_divided:
                pieces.append("\n")
        pieces.append(part)
    return _merge(pieces)


def _merge(pieces: Sequence[str | ImageRef]) -> tuple[str | ImageRef, ...]:
    """Join neighbouring texts and leave empty ones out."""
    merged: list[str | ImageRef] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        elif piece != "":
            merged.append(piece)
    return tuple(merged)


def _strip(pieces: Sequence[str | ImageRef]) -> tuple[str | ImageRef, ...]:
    stripped = list(pieces)
    if stripped and isinstance(stripped[0], str):
        stripped[0] = stripped[0].lstrip()
    if stripped and isinstance(stripped[-1], str):
        stripped[-1] = stripped[-1].rstrip()
    return _merge(stripped)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
