"""Drop records longer than what a model reads at once, in tokens or in characters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vl2.curate.filters.verdict import KEPT, Verdict, dropped
from vl2.curate.filters.words import texts_of
from vl2.data.record import Record
from vl2.data.stored_image import open_stored
from vl2.errors import UserError
from vl2.process.processor import Processor


def count_characters(record: Record) -> int:
    """Return the characters of all texts; images count nothing."""
    return sum(map(len, texts_of(record, "system", "user", "assistant")))


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Count the tokens of a record as training will see them, visual tokens included. It opens the images."""

    processor: Processor
    root: Path = Path()

    def __call__(self, record: Record) -> int:
        images = [open_stored(image, self.root) for image in record.images]
        sample = self.processor.encode(record.to_messages(images), train=True, name=record.id)
        return len(sample.input_ids)


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """`count` is `count_characters` or a `TokenCount`; `unit` only names it in the reason."""

    limit: int
    count: Callable[[Record], int] = count_characters
    unit: str = "characters"
    name: str = "too_long"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"limit must be at least 1, got {self.limit}")

    @classmethod
    def in_tokens(cls, limit: int, processor: Processor, root: Path = Path()) -> TooLong:
        """Return the filter that counts the tokens of a processor."""
        return cls(limit=limit, count=TokenCount(processor=processor, root=root), unit="tokens")

    def __call__(self, record: Record) -> Verdict:
        try:
            length = self.count(record)
        except UserError as error:
            return dropped(f"its length cannot be told: {error}")
        return KEPT if length <= self.limit else dropped(f"{length} {self.unit}, the limit is {self.limit}")
