"""Drop records whose images are all duplicates or near duplicates of images of records kept before.

Images are compared by a perceptual hash of 256 bits that hardly changes when an image is scaled, recompressed or
brightened. A bit says whether one of the 16 x 16 lowest DCT frequencies of a 64 x 64 gray thumbnail is above their
median. The usual 64-bit hash cannot distinguish two pages of text in the same layout, because the 8 x 8 lowest
frequencies only show the layout.

Hashes within a few bits are found by multi-index hashing (Norouzi, Punjani, Fleet 2012), without comparing all pairs.
A hash is split into 13 blocks of 19 or 20 bits. If two hashes differ in at most 25 bits, at least one block differs in
at most one bit, so only hashes that nearly share a block are compared (1 in 3,000 random ones). The search is exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vl2.curate.filters.filter_chain import KEPT, OrderedFilter, Verdict, dropped
from vl2.curate.record_texts import stable_hash, texts_of, words_of
from vl2.data.record import Record
from vl2.data.stored_image import open_stored
from vl2.errors import UserError

HASH_BITS = 256
FLAT = 0  # the hash of every image of a single color
_KEPT = 16  # frequencies in each direction
_THUMBNAIL_PX = 64


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """Return the basis of the lowest DCT frequencies, one per row; row 0 is the constant."""
    frequency, place = np.arange(_KEPT + 1)[:, None], np.arange(_THUMBNAIL_PX)[None, :]
    return np.asarray(np.cos(np.pi * frequency * (2 * place + 1) / (2 * _THUMBNAIL_PX)))


@cache
def _bit_order() -> npt.NDArray[np.int64]:
    """Return the fixed permutation of the bits of a hash.

    Pages in one layout agree in whole rows of frequencies. Without the shuffle, such rows would fill blocks of the
    index, which would then compare each page with all others. NumPy guarantees the stream of RandomState.
    """
    return np.random.RandomState(20241213).permutation(HASH_BITS)


def perceptual_hash(image: Image.Image) -> int:
    """Return the perceptual hash as an integer of 256 bits. An image of a single color has the hash `FLAT`."""
    thumbnail = image.convert("L").resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    gray = np.asarray(thumbnail, dtype=np.float64)
    spectrum = _cosines() @ gray @ _cosines().T
    # Leave out the constant, so that brightness does not change the hash. Round, because otherwise rounding errors
    # would set bits of flat images.
    lowest = np.round(spectrum.ravel()[1 : HASH_BITS + 1], 3)
    bits = (lowest > np.median(lowest))[_bit_order()]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(first: int, second: int) -> int:
    """Return the number of bits in which two hashes differ."""
    return (first ^ second).bit_count()


_BLOCKS = 13
_STARTS = [round(HASH_BITS * block / _BLOCKS) for block in range(_BLOCKS + 1)]
_WIDTHS = [end - start for start, end in pairwise(_STARTS)]
MAX_DISTANCE = 2 * _BLOCKS - 1  # allows one flipped bit per block; two would need 211 look-ups per block


class HammingIndex:
    """An index of hashes, numbered in the order of addition, for search by Hamming distance.

    `comparisons` counts the hashes that were compared in full.
    """

    def __init__(self, max_distance: int) -> None:
        if not 0 <= max_distance <= MAX_DISTANCE:
            raise UserError(f"max_distance must be in 0..{MAX_DISTANCE} bits of {HASH_BITS}, got {max_distance}")
        self.max_distance = max_distance
        self.comparisons = 0
        self.hashes: list[int] = []
        self._buckets: dict[int, list[int]] = defaultdict(list)
        self._flips = max_distance >= _BLOCKS  # below this, at least one block is equal

    def __len__(self) -> int:
        return len(self.hashes)

    def add(self, image_hash: int) -> int:
        """Add a hash and return its number."""
        number = len(self.hashes)
        self.hashes.append(image_hash)
        for key in self._keys(image_hash):
            self._buckets[key].append(number)
        return number

    def near(self, image_hash: int) -> list[int]:
        """Return the numbers of all hashes within `max_distance` bits, nearest first; ties go to the oldest."""
        found: set[int] = set()
        for key, width in zip(self._keys(image_hash), _WIDTHS, strict=True):
            found.update(self._buckets.get(key, ()))
            for bit in range(width if self._flips else 0):
                found.update(self._buckets.get(key ^ (1 << bit), ()))
        self.comparisons += len(found)
        distances = {number: distance(image_hash, self.hashes[number]) for number in found}
        close = [number for number in found if distances[number] <= self.max_distance]
        return sorted(close, key=lambda number: (distances[number], number))

    @staticmethod
    def _keys(image_hash: int) -> Iterator[int]:
        """Yield one key per block: its bits, with the block's number in the high bits, for one shared table."""
        for block, (start, width) in enumerate(zip(_STARTS, _WIDTHS, strict=False)):
            bits = (image_hash >> start) & ((1 << width) - 1)
            yield (block << max(_WIDTHS)) | bits


NEAR_BITS = 24  # of 256; rescaled or recompressed copies differ in up to about 18, pages in one layout in 70 or more


@dataclass(frozen=True, kw_only=True)
class ImageHashes:
    """The hashes by which a record is compared: of each image and of its question; or the reason why there are none."""

    hashes: tuple[int, ...]
    question: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class MeasureImages:
    """Hash the images of a record, and its question if `same_question` is set."""

    root: Path
    same_question: bool

    def __call__(self, record: Record) -> ImageHashes:
        question = stable_hash(tuple(words_of("\n".join(texts_of(record, "user"))))) if self.same_question else 0
        try:
            hashes = tuple(perceptual_hash(open_stored(image, self.root)) for image in record.images)
        except UserError as error:
            return ImageHashes(hashes=(), question=question, problem=str(error))
        return ImageHashes(hashes=hashes, question=question)


@dataclass(frozen=True, kw_only=True)
class _KeptImage:
    record_id: str
    question: int


class DuplicateImage(OrderedFilter):
    """Drop records whose images were all seen before.

    With `same_question`, a record is a duplicate only if the question is also the same, so several questions about
    one image are kept.
    """

    name = "duplicate_image"

    def __init__(self, *, root: Path = Path(), max_distance: int = NEAR_BITS, same_question: bool = False) -> None:
        self.index = HammingIndex(max_distance)
        self._seen: list[_KeptImage] = []  # by the number of its hash in the index
        self.measure = MeasureImages(root=root, same_question=same_question)

    def judge(self, record_id: str, measured: ImageHashes) -> Verdict:
        if measured.problem:
            return dropped(measured.problem)
        matches = [self._match(image_hash, measured.question) for image_hash in measured.hashes]
        if matches and all(match is not None for match in matches):
            first = matches[0] or 0
            bits = distance(measured.hashes[0], self.index.hashes[first])
            return dropped(f"its images are those of {self._seen[first].record_id}, {bits} bits apart")
        for image_hash in measured.hashes:
            self.index.add(image_hash)
            self._seen.append(_KeptImage(record_id=record_id, question=measured.question))
        return KEPT

    def _match(self, image_hash: int, question: int) -> int | None:
        near = self.index.near(image_hash)
        return next((number for number in near if self._seen[number].question == question), None)
