"""Drop records that overlap with evaluation sets, by image or by the words of a question.

The evaluation sets are represented by an index of hashes: exact and perceptual hashes of their images, and hashes of
the n-grams of their questions. The index is built once and saved as one .npz file without pickled objects. It contains
no text and no image of the sets.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from vl2.curate.filters.duplicate_images import FLAT, HASH_BITS, HammingIndex, perceptual_hash
from vl2.curate.filters.filter_chain import KEPT, Verdict, dropped
from vl2.curate.record_texts import n_grams, stable_hash, texts_of, words_of
from vl2.data.record import Record
from vl2.data.stored_image import content_hash, open_stored, read_stored
from vl2.errors import UserError
from vl2.process.image import open_image

NGRAM_WORDS = 8
# An n-gram in more questions than this is boilerplate ("answer the question using a single word"), not content.
MAX_QUESTIONS = 20
_FORMAT = 1


def question_grams(text: str) -> set[int]:
    """Return the hashes of a question's 8-grams. Shorter questions have none, because they occur everywhere."""
    return {stable_hash(gram) for gram in n_grams(words_of(text), NGRAM_WORDS)}


class EvaluationIndex:
    """An index of the images and questions of evaluation sets; fill it completely before the first query."""

    def __init__(self, max_distance: int = 24) -> None:
        self.near = HammingIndex(max_distance)
        self.exact: set[str] = set()
        self._grams: Counter[int] = Counter()

    def add_image(self, data: bytes) -> None:
        """Add the content hash and the perceptual hash of an image file. Raise UserError if it cannot be decoded."""
        self.exact.add(content_hash(data))
        image_hash = perceptual_hash(open_image(data))
        if image_hash != FLAT:  # one blank page in a set must not drop every blank page
            self.near.add(image_hash)

    def add_question(self, text: str) -> None:
        """Add the n-grams of a question."""
        self._grams.update(question_grams(text))

    def add_all(self, images: Iterable[bytes], questions: Iterable[str]) -> None:
        """Add many images and questions."""
        for data in images:
            self.add_image(data)
        for text in questions:
            self.add_question(text)

    def has_picture(self, image: Image.Image) -> bool:
        """Return whether an image is a near duplicate of one in the evaluation sets."""
        return bool(self.near.near(perceptual_hash(image)))

    def overlap(self, text: str) -> float:
        """Return the share of the text's n-grams that occur in evaluation questions; 0 if it has no n-grams."""
        grams = question_grams(text)
        return sum(0 < self._grams[gram] <= MAX_QUESTIONS for gram in grams) / len(grams) if grams else 0.0

    def save(self, path: Path) -> None:
        """Write the index to a file. The same content gives the same arrays."""
        grams = sorted(self._grams.items())
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.array([_FORMAT, self.near.max_distance, NGRAM_WORDS], dtype=np.int64),
                exact=_bytes_table([bytes.fromhex(digest) for digest in sorted(self.exact)], 32),
                near=_bytes_table([value.to_bytes(HASH_BITS // 8, "big") for value in self.near.hashes], 32),
                grams=np.array([gram for gram, _ in grams], dtype=np.uint64),
                counts=np.array([count for _, count in grams], dtype=np.int64),
            )

    @classmethod
    def load(cls, path: Path) -> EvaluationIndex:
        """Read an index that `save` wrote. Raise UserError if it is missing, damaged or of another format."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                tables = {name: arrays[name] for name in ("format", "exact", "near", "grams", "counts")}
        except FileNotFoundError:
            raise UserError(f"no evaluation index at {path}") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise UserError(f"{path} is not an evaluation index") from None
        version, max_distance, words = (int(value) for value in tables["format"])
        if (version, words) != (_FORMAT, NGRAM_WORDS):
            raise UserError(f"{path} is an evaluation index of format {version}, this version reads {_FORMAT}")
        index = cls(max_distance)
        index.exact = {row.tobytes().hex() for row in tables["exact"]}
        for row in tables["near"]:
            index.near.add(int.from_bytes(row.tobytes(), "big"))
        index._grams = Counter(dict(zip(tables["grams"].tolist(), tables["counts"].tolist(), strict=True)))
        return index


def _bytes_table(rows: list[bytes], width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), width)


class Decontaminate:
    """Drop records whose images or questions are in the evaluation sets.

    `max_overlap` is the largest allowed share of a text's 8-grams that occur in evaluation questions.
    """

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
