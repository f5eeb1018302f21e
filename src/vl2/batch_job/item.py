"""One unit of a job: what it is called, what is asked, and what is said about it beside the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vl2.errors import UserError
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import Turn
from vl2.process.image import ImageSource


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the model is asked, read when its turn comes."""

    turns: Sequence[Turn]
    options: GenerateOptions

    @property
    def images(self) -> list[ImageSource]:
        return [source for turn in self.turns for source in turn.images]


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """One line of the output. `read` may raise UserError, which becomes the item's error."""

    id: str  # unique within the job
    read: Callable[[], Asked]
    about: Mapping[str, Any] = field(default_factory=dict)  # goes into the line: file, page
    form: Literal["plain", "openai"] = "plain"
    query: str | None = None  # what is searched for, where one thing is


def check_unique(items: Sequence[BatchItem]) -> None:
    """Refuse two items of one name: of the second nobody could say whether it is done."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UserError(f"two items are called {item.id!r}: names must be unique")
        seen.add(item.id)
