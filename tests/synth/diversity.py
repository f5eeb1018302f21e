"""How varied drawn records are, in numbers: words, fonts, sizes, labels and pictures."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

from vl2.data.record import Record
from vl2.synth.source import Dropped, Source, rng_for

HASH_SIDE = 8  # a difference hash of 8 x 8 = 64 bits
_WORD = re.compile(r"[一-鿿]|[^\W_]+")  # one Chinese character, or a run of letters or digits
_MARKER = re.compile(r"<\|[^|]*\|>|\{box:\d+\}")


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Measures of a set of records. A share or entropy near 0 means: always the same."""

    records: int
    distinct_words: int  # in questions and answers
    distinct_questions: int
    distinct_answers: int
    distinct_sizes: int  # (width, height) of the images
    labels: int
    label_entropy_bits: float
    perceptual_spread: float  # mean share of hash bits in which two images differ: 0 the same, about 0.5 unrelated
    traits: dict[str, int]  # what the sources noted (font, paper, task, ...): how many distinct values

    def table(self) -> str:
        """Return the measures as lines of text."""
        lines = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "traits"]
        lines += [(f"distinct {name}", count) for name, count in sorted(self.traits.items())]
        return "\n".join(f"{name:<22} {v:.3f}" if isinstance(v, float) else f"{name:<22} {v}" for name, v in lines)


def diversity(records: Sequence[Record], traits: Iterable[dict[str, str]] = ()) -> Diversity:
    """Measure records; `traits` are the notes of their drafts, where they are at hand."""
    texts = [(m.role, _MARKER.sub(" ", p.text)) for r in records for m in r.messages for p in m.parts if p.text]
    labels = Counter(labeled.label for record in records for labeled in record.objects)
    noted: dict[str, set[str]] = {}
    for entry in traits:
        for name, value in entry.items():
            noted.setdefault(name, set()).add(value)
    return Diversity(
        records=len(records),
        distinct_words=len({word.lower() for _, text in texts for word in _WORD.findall(text)}),
        distinct_questions=len({text for role, text in texts if role == "user"}),
        distinct_answers=len({text for role, text in texts if role == "assistant"}),
        distinct_sizes=len({(image.width, image.height) for record in records for image in record.images}),
        labels=len(labels),
        label_entropy_bits=entropy_bits(labels),
        perceptual_spread=perceptual_spread(records),
        traits={name: len(values) for name, values in noted.items()},
    )


def measure(source: Source, count: int, seed: int = 0) -> Diversity:
    """Make `count` records of a source and measure them with the notes of their drafts."""
    records, traits = [], []
    for index in range(count):
        try:
            draft = source.draft(rng_for(seed, source.name, index))
        except Dropped:
            continue
        records.append(source.finish(draft, index, seed))
        traits.append(draft.traits)
    return diversity(records, traits)


def entropy_bits(counts: Counter[str]) -> float:
    """Return the entropy of a distribution; 0 for none or one value."""
    total = sum(counts.values())
    return sum(-n / total * math.log2(n / total) for n in counts.values())


def perceptual_spread(records: Sequence[Record]) -> float:
    """Return the mean share of bits in which the difference hashes of two images differ."""
    pictures = [image.data for record in records for image in record.images if image.data is not None]
    if len(pictures) < 2:
        return 0.0
    bits = np.stack([difference_hash(data) for data in pictures])
    ones = bits.sum(axis=0, dtype=np.int64)
    # Over all pairs, a bit differs ones * zeros times: no need to compare the pairs one by one.
    differing: float = (ones * (len(bits) - ones)).sum().item()
    return differing / (len(bits) * (len(bits) - 1) / 2) / HASH_SIDE**2


def difference_hash(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return 64 bits: where the shrunken grey image grows brighter to the right."""
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return (grey[:, 1:] > grey[:, :-1]).reshape(-1)
