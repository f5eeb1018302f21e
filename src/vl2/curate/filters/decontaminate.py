"""Drop records that the evaluation sets hold: an image of theirs, or most of the words of a question."""

from __future__ import annotations

from pathlib import Path

from vl2.curate.filters.evaluation_index import EvaluationIndex
from vl2.curate.filters.verdict import KEPT, Verdict, dropped
from vl2.curate.filters.words import texts_of
from vl2.data.record import Record
from vl2.data.stored_image import content_hash, open_stored, read_stored
from vl2.errors import UserError


class Decontaminate:
    """`max_overlap` is the share of a question's 8-grams that may be an evaluation question's."""

    name = "decontaminate"

    def __init__(self, index: EvaluationIndex, *, root: Path = Path(), max_overlap: float = 0.5) -> None:
        if not 0 <= max_overlap <= 1:
            raise UserError(f"max_overlap must be in 0..1, got {max_overlap}")
        self._index = index
        self._root = root
        self._max_overlap = max_overlap

    def __call__(self, record: Record) -> Verdict:
        for text in texts_of(record, "user", "document"):
            overlap = self._index.overlap(text)
            if overlap > self._max_overlap:
                return dropped(f"{overlap:.0%} of a question's 8-grams are in the evaluation sets")
        for number, image in enumerate(record.images):
            try:
                if content_hash(read_stored(image, self._root)) in self._index.exact:
                    return dropped(f"image {number} is in the evaluation sets")
                if self._index.has_picture(open_stored(image, self._root)):
                    return dropped(f"image {number} looks like one of the evaluation sets")
            except UserError as error:
                return dropped(f"image {number}: {error}")
        return KEPT
