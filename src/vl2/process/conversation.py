"""A conversation as a list of `Turn`, each with text and images in order. The whole package uses this form.

Dictionaries from outside are converted to turns in `messages.py`, `serve/schema` and `data/record.py`. `arrange` brings
turns into the form that the chat template writes.

Golden: `messages` in tests/golden/reference/processor/conversations_*.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from vl2.errors import UserError
from vl2.process.image import ImageSource, is_image_source
from vl2.process.tokenizer import Specials

Role = Literal["system", "user", "assistant", "document"]

SOURCES = "a path, URL, data URL, bytes, open file or PIL image"


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """One image of a turn: its source as given. The code that encodes the turn opens it with its own options."""

    source: ImageSource

    def __post_init__(self) -> None:
        if not is_image_source(self.source):
            raise UserError(f"an image must be {SOURCES}, got {kind_of(self.source)}")


Piece = str | ImageRef


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation: text and images in order. Only user turns and documents may have images.

    A turn with the role "document" must be the only one and is written without a template. With `is_released` the text
    is used unchanged and may contain any special token, as in the released form. Otherwise the pieces are parts, which
    `arrange` separates by white space. Raise UserError for an unknown role, or images in another role's turn.
    """

    role: Role
    pieces: tuple[Piece, ...]
    is_released: bool = False

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise UserError(f"role must be one of {', '.join(get_args(Role))}, got {self.role!r}")
        for piece in self.pieces:
            if not isinstance(piece, str | ImageRef):
                raise UserError(f"a text must be a string, got {kind_of(piece)}")
        if self.images and self.role not in ("user", "document"):
            raise UserError(f"images belong into user messages, not into one of the {self.role}")

    @property
    def specials(self) -> Specials:
        """Which special tokens the text may contain."""
        return "all" if self.is_released else "grounding"

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return tuple(piece.source for piece in self.pieces if isinstance(piece, ImageRef))

    @property
    def text(self) -> str:
        """The text without the images."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    def images_first(self) -> Turn:
        """Return the turn with all images before all text, each in their order."""
        return replace(self, pieces=tuple(sorted(self.pieces, key=lambda piece: not isinstance(piece, ImageRef))))

    def map_images(self, change: Callable[[ImageSource], ImageSource]) -> Turn:
        """Return the turn with `change` applied to the source of each image."""
        changed = (ImageRef(source=change(p.source)) if isinstance(p, ImageRef) else p for p in self.pieces)
        return replace(self, pieces=tuple(changed))


def user_turn(text: str, images: Sequence[ImageSource] = ()) -> Turn:
    """Return a user turn with the images first, then the text."""
    return Turn(role="user", pieces=(*(ImageRef(source=image) for image in images), text))


def one_question(text: str, images: Sequence[ImageSource] = (), system: str | None = None) -> list[Turn]:
    """Return a conversation of one question, after a system prompt if there is one."""
    turn = user_turn(text, images)
    return [turn] if system is None else [Turn(role="system", pieces=(system,)), turn]


def arrange(turns: Iterable[Turn]) -> list[Turn]:
    """Return turns in the template's form: at most one system turn, then user and assistant turns in alternation.

    Parts without white space between them are separated by a newline, neighboring turns of the user (or of the system)
    are joined by a newline, and outer white space is removed. A document stays unchanged, and so do turns that are
    already arranged. Raise UserError, which names the turn by its index, for turns in another order.
    """
    arranged: list[Turn] = []
    rest = iter(turns)
    for index, turn in enumerate(rest):
        if turn.role == "document":
            return [_lone_document(turn, index, rest)]
        previous = arranged[-1] if arranged else None
        _check_order(previous, turn.role, index)
        pieces = merge(turn.pieces) if turn.is_released else _lay_out(turn.pieces)
        if previous is not None and previous.role == turn.role:
            arranged[-1] = replace(previous, pieces=merge((*previous.pieces, "\n", *pieces)))
        else:
            arranged.append(replace(turn, pieces=pieces))
    if not arranged:
        raise UserError("messages must hold at least one message, got an empty list")
    if arranged[-1].role == "system":
        raise UserError("a conversation needs at least one user message, got only a system message")
    return [replace(turn, pieces=_strip(turn.pieces)) for turn in arranged]


def _lone_document(turn: Turn, index: int, rest: Iterator[Turn]) -> Turn:
    if num_others := index + sum(1 for _ in rest):
        raise not_alone(num_others + 1)
    if not (pieces := merge(turn.pieces)):
        raise UserError("message 0: the document is empty")
    return replace(turn, pieces=pieces)


def not_alone(num_messages: int) -> UserError:
    """Return the UserError for a document among other messages."""
    return UserError(f"a document must be the only message, got {num_messages} messages")


def _check_order(previous: Turn | None, role: Role, index: int) -> None:
    before = previous.role if previous is not None else None
    if role == "system" and before not in (None, "system"):
        raise UserError(f"message {index}: a system message must come before all others")
    if role == "assistant" and before != "user":
        what = "another assistant message" if before == "assistant" else "no user message"
        raise UserError(f"message {index}: an assistant message must follow a user message, here it follows {what}")


def _lay_out(parts: Sequence[Piece]) -> tuple[Piece, ...]:
    """Put a newline between neighboring parts that no white space separates, as the released prompts do."""
    pieces: list[Piece] = []
    for part in parts:
        if part == "":
            continue
        if pieces:
            before = pieces[-1]
            is_divided = (isinstance(before, str) and before[-1].isspace()) or (
                isinstance(part, str) and part[0].isspace()
            )
            if not is_divided:
                pieces.append("\n")
        pieces.append(part)
    return merge(pieces)


def merge(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Join neighboring texts and drop empty ones."""
    merged: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        elif piece != "":
            merged.append(piece)
    return tuple(merged)


def _strip(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    stripped = list(pieces)
    if stripped and isinstance(stripped[0], str):
        stripped[0] = stripped[0].lstrip()
    if stripped and isinstance(stripped[-1], str):
        stripped[-1] = stripped[-1].rstrip()
    return merge(stripped)


def kind_of(value: object) -> str:
    """Name the type of a value, for an error message."""
    return "nothing" if value is None else f"a {type(value).__name__}"
