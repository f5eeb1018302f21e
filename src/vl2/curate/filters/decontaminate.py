"""Drop records that the evaluation sets hold: an image of theirs, or most of the words of a question.

What those sets hold is an index of hashes: of their images, exact and near, and of the n-grams of their questions. It
is built once, saved as one .npz file without pickled objects, and holds no text and no picture of the sets.
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
# An n-gram in more questions than this is a set's wording ("answer the question using a single word"), not content.
MAX_QUESTIONS = 20
_FORMAT = 1


def question_grams(text: str) -> set[int]:
    """Return the hashes of a question's 8-grams; none if it is shorter: such questions are asked everywhere."""
    return {stable_hash(gram) for gram in n_grams(words_of(text), NGRAM_WORDS)}


class EvaluationIndex:
    """Add every image and question of the evaluation sets, then ask."""

    def __init__(self, max_distance: int = 24) -> None:
        self.near = HammingIndex(max_distance)
        self.exact: set[str] = set()
        self._grams: Counter[int] = Counter()

    def add_image(self, data: bytes) -> None:
        """Remember the bytes of an image file and how the picture looks. UserError if it does not open."""
        self.exact.add(content_hash(data))
        image_hash = perceptual_hash(open_image(data))
        if image_hash != FLAT:  # one blank page in a set must not drop every blank page
            self.near.add(image_hash)

    def add_question(self, text: str) -> None:
        """Remember the n-grams of a question."""
        self._grams.update(question_grams(text))

    def add_all(self, images: Iterable[bytes], questions: Iterable[str]) -> None:
        """Remember many images and questions."""
        for data in images:
            self.add_image(data)
        for text in questions:
            self.add_question(text)

    def has_picture(self, image: Image.Image) -> bool:
        """Tell whether a picture looks like one of the sets'."""
        return bool(self.near.near(perceptual_hash(image)))

    def overlap(self, text: str) -> float:
        """Return the share of the text's n-grams that questions of the sets hold; 0 if it has none."""
        grams = question_grams(text)
        return sum(0 < self._grams[gram] <= MAX_QUESTIONS for gram in grams) / len(grams) if grams else 0.0

    def save(self, path: Path) -> None:
        """Write the index; the same content gives the same arrays."""
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
        """Read an index that `save` wrote. UserError if it is missing, damaged or of another kind."""
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
