"""Drop records whose text is nearly that of a record kept before, found by MinHash with banding.

A signature holds the minimum of each of 128 hash functions over the text's shingles. The share of equal entries
estimates the Jaccard similarity of two shingle sets (standard error about 0.04 at 0.8). Texts are compared only if one
of their 16 bands of 8 entries is equal; the probability of that is 95 % at similarity 0.8 and 1 % at 0.4.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from vl2.curate.filters.filter_chain import KEPT, OrderedFilter, Verdict, dropped
from vl2.curate.record_texts import n_grams, stable_hash, texts_of, words_of
from vl2.data.record import Record
from vl2.errors import UserError

Signature = npt.NDArray[np.uint64]

SHINGLE_WORDS = 3
_PLACES = 128
_BANDS = 16
_ROWS = _PLACES // _BANDS
_PRIME = (1 << 31) - 1  # products of two residues fit into 64 bits
_MAX_BUCKET = 64  # texts made from one template share bands; only the latest ones in a bucket are compared


@cache
def _hash_functions() -> tuple[Signature, Signature]:
    # NumPy guarantees the stream of RandomState, so signatures can be stored.
    random = np.random.RandomState(20241213)
    factors = random.randint(1, _PRIME, _PLACES).astype(np.uint64)
    offsets = random.randint(0, _PRIME, _PLACES).astype(np.uint64)
    return factors, offsets


def signature(text: str) -> Signature | None:
    """Return the MinHash signature, uint64 [128], or None for a text without words.

    A text of fewer than SHINGLE_WORDS words is one shingle.
    """
    words = words_of(text)
    if not words:
        return None
    shingles = sorted({stable_hash(gram) % _PRIME for gram in n_grams(words, min(SHINGLE_WORDS, len(words)))})
    factors, offsets = _hash_functions()
    values = np.asarray(shingles, dtype=np.uint64)
    least = np.full(_PLACES, _PRIME, dtype=np.uint64)
    for start in range(0, len(values), 1024):  # bounds the memory for long texts
        table = (values[start : start + 1024, None] * factors + offsets) % np.uint64(_PRIME)
        least = np.minimum(least, table.min(axis=0))
    return least


def similarity(first: Signature, second: Signature) -> float:
    """Return the estimated Jaccard similarity, 0..1."""
    return float(np.mean(first == second))


class MinHashIndex:
    """An index of signatures, numbered in the order of addition. `comparisons` counts full comparisons."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.comparisons = 0
        self._signatures: list[Signature] = []
        self._buckets: dict[tuple[int, bytes], deque[int]] = defaultdict(lambda: deque(maxlen=_MAX_BUCKET))

    def add(self, new: Signature) -> int:
        """Add a signature and return its number."""
        number = len(self._signatures)
        self._signatures.append(new.astype(np.uint32))
        for key in self._keys(new):
            self._buckets[key].append(number)
        return number

    def nearest(self, wanted: Signature) -> tuple[int, float] | None:
        """Return the number and similarity of the most similar text, or None if none reaches the threshold.

        Ties go to the oldest text.
        """
        found = sorted({number for key in self._keys(wanted) for number in self._buckets.get(key, ())})
        self.comparisons += len(found)
        scored = [(number, similarity(self._signatures[number], wanted)) for number in found]
        best = max(scored, key=lambda pair: pair[1], default=None)
        return best if best is not None and best[1] >= self.threshold else None

    @staticmethod
    def _keys(sign: Signature) -> list[tuple[int, bytes]]:
        small = sign.astype(np.uint32)
        return [(band, small[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]


@dataclass(frozen=True, kw_only=True)
class MeasureText:
    """Compute the signature of a record's text; None if the record is not compared."""

    with_images: bool

    def __call__(self, record: Record) -> Signature | None:
        if record.images and not self.with_images:
            return None
        return signature("\n".join(texts_of(record, "user", "assistant")))


class DuplicateText(OrderedFilter):
    """Drop records whose whole conversation is a near duplicate.

    Records with images are kept unless `with_images` is set, because the same short texts ("What is this?" "A cat.")
    recur with different images.
    """

    name = "duplicate_text"

    def __init__(self, *, threshold: float = 0.8, with_images: bool = False) -> None:
        if not 0.5 <= threshold <= 1:
            raise UserError(f"threshold must be in 0.5..1, got {threshold}")
        self.index = MinHashIndex(threshold)
        self._ids: list[str] = []
        self.measure = MeasureText(with_images=with_images)

    def judge(self, record_id: str, measured: Signature | None) -> Verdict:
        if measured is None:
            return KEPT
        match = self.index.nearest(measured)
        if match is not None:
            return dropped(f"its text is that of {self._ids[match[0]]}, similarity {match[1]:.2f}")
        self.index.add(measured)
        self._ids.append(record_id)
        return KEPT
