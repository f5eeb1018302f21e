"""Drop records whose text nearly is that of a record kept before."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.curate.filters.minhash import MinHashIndex, Signature, signature
from vl2.curate.filters.verdict import KEPT, OrderedFilter, Verdict, dropped
from vl2.curate.filters.words import texts_of
from vl2.data.record import Record
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MeasureText:
    """Sign the text of a record; None where it is not compared."""

    with_images: bool

    def __call__(self, record: Record) -> Signature | None:
        if record.images and not self.with_images:
            return None
        return signature("\n".join(texts_of(record, "user", "assistant")))


class DuplicateText(OrderedFilter):
    """Compare whole conversations. Records with images pass unless `with_images`: "What is this?" "A cat." recurs."""

    name = "duplicate_text"

    def __init__(self, *, threshold: float = 0.8, with_images: bool = False) -> None:
        if not 0.5 <= threshold <= 1:
            raise UserError(f"threshold must be in 0.5..1, got {threshold}")
        self.index = MinHashIndex(threshold)
        self._ids: list[str] = []
        self.measure = MeasureText(with_images=with_images)

    def judge(self, record: Record, measured: Signature | None) -> Verdict:
        if measured is None:
            return KEPT
        match = self.index.nearest(measured)
        if match is not None:
            return dropped(f"its text is that of {self._ids[match[0]]}, similarity {match[1]:.2f}")
        self.index.add(measured)
        self._ids.append(record.id)
        return KEPT
