"""Convert messages, which are dictionaries, to turns and back. Malformed messages raise UserError here.

There are two forms of messages. In OpenAI's form a message has a role and a content, which is a string or a list of
parts; a literal `<image>` in it is text. The released form is recognized by an `images` key or a role like `<|User|>`.
Each `<image>` in its content stands for the next of the message's images, and the text of any special token becomes
that token.

In both forms a single message with the role "document" is not a conversation. Its texts and images are joined
unchanged, without a template.

Golden: `messages` in tests/golden/reference/processor/conversations_*.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vl2.errors import UserError
from vl2.process.conversation import SOURCES, ImageRef, Piece, Role, Turn, arrange, kind_of, merge, not_alone
from vl2.process.image import ImageSource, is_image_source
from vl2.process.tokenizer import ASSISTANT, IMAGE, USER

Message = Mapping[str, Any]
Conversation = Sequence[Message] | Sequence[Turn]

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
# Keys that users put beside the content by mistake. They are refused, because ignoring them would drop the picture.
_MISPLACED = ("image", "image_url", "image_urls", "parts")


def to_turns(conversation: object) -> list[Turn]:
    """Return the turns of a conversation of messages or turns, arranged for the template.

    Raise UserError, which names the message by its index, if a message is malformed or out of order.
    """
    return arrange(read_turns(conversation))


def read_turns(conversation: object) -> Iterator[Turn]:
    """Yield a turn for every message, with its parts as given. Turns are yielded unchanged."""
    if not isinstance(conversation, Sequence) or isinstance(conversation, str | bytes | bytearray):
        raise UserError(f"messages must be a list of messages, got {kind_of(conversation)}")
    if all(isinstance(item, Turn) for item in conversation):
        yield from conversation
        return
    for index, message in enumerate(conversation):
        if not isinstance(message, Mapping):
            raise UserError(f"message {index} must be a mapping with role and content, got {kind_of(message)}")
    is_released = any(_is_released(message) for message in conversation)
    for index, message in enumerate(conversation):
        role = _role(message, index)
        _refuse_misplaced(message, index)
        if role == "document" and len(conversation) > 1:
            raise not_alone(len(conversation))  # raised before the other messages are read, which may be malformed too
        pieces = _released_pieces(message, role, index) if is_released else _openai_pieces(message, role, index)
        yield Turn(role=role, pieces=pieces, is_released=is_released)


def to_messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Return turns as messages in OpenAI's form. User turns become a list of parts, all others a string."""
    return [
        {"role": turn.role, "content": [_written(piece) for piece in turn.pieces] if turn.role == "user" else turn.text}
        for turn in turns
    ]


def _written(piece: Piece) -> dict[str, Any]:
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image", "image": piece.source}


def released_prompt(text: object, images: object = ()) -> tuple[Piece, ...]:
    """Return the pieces of a raw prompt, in which each `<image>` stands for the next image.

    Raise UserError if their numbers differ.
    """
    if not isinstance(text, str):
        raise UserError(f"a prompt must be a string, got {kind_of(text)}")
    return _split_placeholders(text, _check_images(images, "the prompt"), "the prompt")


def _is_released(message: Mapping[str, Any]) -> bool:
    role = message.get("role")
    return message.get("images") is not None or (isinstance(role, str) and role in _RELEASED_ROLES)


def _role(message: Mapping[str, Any], index: int) -> Role:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        given = repr(role[:40]) if isinstance(role, str) else kind_of(role)
        raise UserError(
            f"message {index}: role must be user, assistant or system ({USER} and {ASSISTANT} too) or document, "
            f"got {given}"
        )
    return _ROLES[role]


def _refuse_misplaced(message: Mapping[str, Any], index: int) -> None:
    for key in _MISPLACED:
        if message.get(key) is not None:
            raise UserError(f"message {index}: {key!r} belongs into a part of the content, not beside it")


def _released_pieces(message: Mapping[str, Any], role: Role, index: int) -> tuple[Piece, ...]:
    text = message.get("content")
    if not isinstance(text, str):
        raise UserError(
            f"message {index}: content must be a string beside an images list or a role like {USER}, got "
            f"{kind_of(text)}"
        )
    where = f"message {index}"
    images = message.get("images")
    sources = _check_images(() if images is None else images, where)
    if role not in ("user", "document") and (sources or IMAGE in text):
        raise _misplaced_image(role, index)
    return _split_placeholders(text, sources, where)


def _check_images(images: object, where: str) -> list[ImageSource]:
    if not isinstance(images, Sequence) or isinstance(images, str | bytes | bytearray | memoryview):
        raise UserError(f"{where}: images must be a list, got {kind_of(images)}")
    for position, source in enumerate(images):
        if not is_image_source(source):
            raise UserError(f"{where}: image {position} must be {SOURCES}, got {kind_of(source)}")
    return list(images)


def _split_placeholders(text: str, sources: Sequence[ImageSource], where: str) -> tuple[Piece, ...]:
    texts = text.split(IMAGE)
    if len(texts) - 1 != len(sources):
        raise UserError(f"{where}: {len(texts) - 1} {IMAGE} in the text, but {len(sources)} images")
    pieces: list[Piece] = [texts[0]]
    for source, following in zip(sources, texts[1:], strict=True):
        pieces += [ImageRef(source=source), following]
    return merge(pieces)


def _openai_pieces(message: Mapping[str, Any], role: Role, index: int) -> tuple[Piece, ...]:
    content = message.get("content")
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray | memoryview):
        raise UserError(f"message {index}: content must be a string or a list of parts, got {kind_of(content)}")
    parts = tuple(_part(part, f"message {index}, part {position}") for position, part in enumerate(content))
    if role not in ("user", "document") and any(isinstance(part, ImageRef) for part in parts):
        raise _misplaced_image(role, index)
    return parts


def _misplaced_image(role: Role, index: int) -> UserError:
    return UserError(f"message {index}: images belong into user messages, not into one of the {role}")


def _part(part: object, where: str) -> Piece:
    if not isinstance(part, Mapping):
        raise UserError(f"{where} must be a mapping with a type, got {kind_of(part)}")
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXT_PARTS:
        text = part.get("text")
        if not isinstance(text, str):
            raise UserError(f"{where}: text must be a string, got {kind_of(text)}")
        return text
    if isinstance(kind, str) and kind in _IMAGE_PARTS:
        return ImageRef(source=_part_source(part, kind, where))
    allowed = ", ".join((*_TEXT_PARTS, *_IMAGE_PARTS))
    given = repr(kind[:40]) if isinstance(kind, str) else kind_of(kind)
    raise UserError(f"{where}: type must be one of {allowed}, got {given}")


def _part_source(part: Mapping[str, Any], kind: str, where: str) -> ImageSource:
    key = "image" if kind == "image" else "image_url"
    source = part.get(key)
    if key == "image_url":
        if isinstance(source, Mapping):
            source, key = source.get("url"), "image_url.url"
        if not isinstance(source, str):
            raise UserError(f"{where}: {key} must be a string, got {kind_of(source)}")
    if not is_image_source(source):
        raise UserError(f"{where}: {key} must be {SOURCES}, got {kind_of(source)}")
    found: ImageSource = source  # type: ignore[assignment]  # checked just above
    return found
