"""Drop records that show nothing new: every image of theirs is, or nearly is, one of a record kept before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vl2.curate.filters.hamming_index import HammingIndex
from vl2.curate.filters.image_hash import distance, perceptual_hash
from vl2.curate.filters.verdict import KEPT, OrderedFilter, Verdict, dropped
from vl2.curate.filters.words import stable_hash, texts_of, words_of
from vl2.data.record import Record
from vl2.data.stored_image import open_stored
from vl2.errors import UserError

NEAR_BITS = 24  # of 256: rescaled or recompressed copies differ in up to about 18, pages of one layout in 70 and more


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """What is compared: the hash of each image, and of the question; or why an image does not open."""

    hashes: tuple[int, ...]
    question: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class MeasureImages:
    """Hash the images of a record, and its question where that matters."""

    root: Path
    same_question: bool

    def __call__(self, record: Record) -> Pictured:
        question = stable_hash(tuple(words_of("\n".join(texts_of(record, "user"))))) if self.same_question else 0
        try:
            hashes = tuple(perceptual_hash(open_stored(image, self.root)) for image in record.images)
        except UserError as error:
            return Pictured(hashes=(), question=question, problem=str(error))
        return Pictured(hashes=hashes, question=question)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    record_id: str
    question: int


class DuplicateImage(OrderedFilter):
    """`same_question` keeps several questions about one image: only the same question is then a duplicate."""

    name = "duplicate_image"

    def __init__(self, *, root: Path = Path(), max_distance: int = NEAR_BITS, same_question: bool = False) -> None:
        self.index = HammingIndex(max_distance)
        self._seen: list[_Seen] = []  # by the number of its hash in the index
        self.measure = MeasureImages(root=root, same_question=same_question)

    def judge(self, record: Record, measured: Pictured) -> Verdict:
        if measured.problem:
            return dropped(measured.problem)
        matches = [self._match(image_hash, measured.question) for image_hash in measured.hashes]
        if matches and all(match is not None for match in matches):
            first = matches[0] or 0
            bits = distance(measured.hashes[0], self.index.hashes[first])
            return dropped(f"its images are those of {self._seen[first].record_id}, {bits} bits apart")
        for image_hash in measured.hashes:
            self.index.add(image_hash)
            self._seen.append(_Seen(record_id=record.id, question=measured.question))
        return KEPT

    def _match(self, image_hash: int, question: int) -> int | None:
        near = self.index.near(image_hash)
        return next((number for number in near if self._seen[number].question == question), None)
