"""Measure how varied the records of each source are, over a sample: answers, words, phrases and layouts.

The number of different answers that a source can give is estimated from how often two sampled answers are equal. If all
N answers are equally likely, 1 of N pairs is equal; in general this gives the effective number of answers (the inverse
of Simpson's index). A source is enough for MAX_REPEATS times as many records: data that is repeated up to four times
trains almost as well as new data (Muennighoff et al. 2023, arXiv 2305.16264). Short answers are left out, because few
different ones are right for them: yes and no, numbers, names of kinds.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vl2.data.record import Record

MAX_REPEATS = 4
# A phrase is PHRASE words in a row. Of 200 records of text_image with passages of Wikipedia 4 % of the phrases had
# occurred before, and 16 % of letters with a paragraph of it; with the built-in texts 86 % and 38 %.
MAX_REPEATED_PHRASES = 0.25
PHRASE = 4
LONG_ANSWER = 8  # words; a Chinese character counts as one. Names, dates and titles are shorter
FEWEST = 30  # answers, below which nothing is warned of
_WORD = re.compile(r"[一-鿿]|[^\W_]+")
_MARKER = re.compile(r"<\|[^|]*\|>|\{box:\d+\}")
_CODE = ("```", "{", "[", "<", "|")  # what code, JSON, HTML and Markdown tables begin with


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Measures of the sampled records of a source."""

    source: str
    records: int
    distinct_answers: float  # share of the answers that differ from all before
    long_answers: int
    effective_answers: float | None  # of the long ones; None if no two of the sample are equal
    words: int  # different words in questions and answers
    repeated_phrases: float | None  # share of the phrases of prose answers that were seen before; None without prose
    distinct_layouts: float | None  # share of the pictures whose coarse layout differs from all before
    spread: float  # mean share of bits in which the hashes of two pictures differ: 0 the same, about 0.5 unrelated
    planned: int | None = None  # number of records that will be drawn, if it is known

    @property
    def enough_for(self) -> int | None:
        """Return how many records the answers are enough for; None if all sampled answers are short.

        If no two answers of the sample are equal, it is the number that one equal pair would give.
        """
        if self.long_answers < 2:
            return None
        pairs = self.long_answers * (self.long_answers - 1) / 2
        return round(MAX_REPEATS * (self.effective_answers or pairs))

    def warnings(self) -> list[str]:
        """Return what is wrong with the source, one sentence each."""
        found = []
        if self.long_answers >= FEWEST and self.effective_answers is not None and self.planned is not None:
            assert self.enough_for is not None
            if self.planned > self.enough_for:
                found.append(
                    f"{self.source}: its answers are enough for about {self.enough_for:,} records, and there are "
                    f"{self.planned:,}: give it more texts or tables"
                )
        if self.repeated_phrases is not None and self.repeated_phrases > MAX_REPEATED_PHRASES:
            found.append(
                f"{self.source}: {self.repeated_phrases:.0%} of its phrases of {PHRASE} words were seen before in a "
                f"sample of {self.records}: give it more texts"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "enough_for": self.enough_for, "warnings": self.warnings()}


def diversity_by_source(records: Iterable[Record], planned: Mapping[str, int] | None = None) -> list[Diversity]:
    """Measure the records of each source, in the order in which the sources first occur."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.source, []).append(record)
    return [measure(group, planned=(planned or {}).get(source)) for source, group in groups.items()]


def measure(records: Sequence[Record], *, planned: int | None = None) -> Diversity:
    """Measure records of one source, of which there must be at least one."""
    texts = [(m.role, _MARKER.sub(" ", p.text)) for r in records for m in r.messages for p in m.parts if p.text]
    answers = [" ".join(text.split()) for role, text in texts if role in ("assistant", "document")]
    long_answers = [answer for answer in answers if len(_WORD.findall(answer)) >= LONG_ANSWER]
    equal_pairs = sum(n * (n - 1) // 2 for n in Counter(long_answers).values())
    pairs = len(long_answers) * (len(long_answers) - 1) / 2
    phrases = Counter(phrase for a in long_answers if not a.startswith(_CODE) for phrase in _phrases(a))
    pictures = [image.data for record in records for image in record.images if image.data is not None]
    layouts = {_layout(picture) for picture in pictures}
    return Diversity(
        source=records[0].source,
        records=len(records),
        distinct_answers=len(set(answers)) / max(1, len(answers)),
        long_answers=len(long_answers),
        effective_answers=pairs / equal_pairs if equal_pairs else None,
        words=len({word.lower() for _, text in texts for word in _WORD.findall(text)}),
        repeated_phrases=1 - len(phrases) / phrases.total() if phrases else None,
        distinct_layouts=len(layouts) / len(pictures) if pictures else None,
        spread=_spread(pictures),
        planned=planned,
    )


def _phrases(answer: str) -> list[tuple[str, ...]]:
    found = [word.lower() for word in _WORD.findall(answer)]
    return list(zip(*(found[n:] for n in range(PHRASE)), strict=False))


def _layout(picture: bytes) -> tuple[int, bytes]:
    """Return the shape of a picture, and where it grows brighter on a grid of 4 x 4: text alone hardly changes it."""
    with Image.open(io.BytesIO(picture)) as image:
        shape = round(4 * math.log2(image.width / image.height))
    return shape, np.packbits(_hash(picture, 4)).tobytes()


def _hash(picture: bytes, side: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return `side` x `side` bits, the difference hash: where the shrunken gray image grows brighter to the right."""
    with Image.open(io.BytesIO(picture)) as image:
        small = image.convert("L").resize((side + 1, side), Image.Resampling.BOX)
    gray = np.asarray(small, dtype=np.int16)
    return (gray[:, 1:] > gray[:, :-1]).reshape(-1)


def _spread(pictures: Sequence[bytes]) -> float:
    if len(pictures) < 2:
        return 0.0
    bits = np.stack([_hash(picture, 8) for picture in pictures])
    ones = bits.sum(axis=0, dtype=np.int64)
    # Over all pairs, a bit differs ones * zeros times: the pairs need not be compared one by one.
    differing = int((ones * (len(bits) - ones)).sum())
    share: float = differing / (len(bits) * (len(bits) - 1) / 2) / bits.shape[1]
    return share


COLUMNS = ("source", "records", "distinct answers", "enough for", "words", "repeated phrases", "layouts", "spread")


def as_rows(measured: Sequence[Diversity]) -> list[tuple[str, ...]]:
    """Return a row of texts for each source, under COLUMNS."""
    rows = []
    for each in measured:
        more = "more than " if each.effective_answers is None else ""
        enough = "-" if each.enough_for is None else f"{more}{each.enough_for:,}"
        rows.append((
            each.source, f"{each.records:,}", f"{each.distinct_answers:.0%}", enough, f"{each.words:,}",
            *("-" if share is None else f"{share:.0%}" for share in (each.repeated_phrases, each.distinct_layouts)),
            f"{each.spread:.2f}",
        ))  # fmt: skip
    return rows
