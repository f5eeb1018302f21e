"""Drop records whose answers repeat themselves, as captioners do when they get stuck."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.curate.filters.verdict import KEPT, Verdict, dropped
from vl2.curate.filters.words import n_grams, texts_of, words_of
from vl2.data.record import Record
from vl2.errors import UserError


def repeated_share(text: str, n: int) -> float:
    """Return the share of the text's n-grams that were already said in it: 0 for none, near 1 for a stuck text."""
    grams = n_grams(words_of(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Meant for prose. Tables, code and lists of readings repeat themselves for good reasons."""

    n: int = 4
    max_share: float = 0.2
    name: str = "repetition"

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.max_share <= 1:
            raise UserError(f"n must be at least 1 and max_share in 0..1, got {self.n} and {self.max_share}")

    def __call__(self, record: Record) -> Verdict:
        for text in texts_of(record, "assistant"):
            share = repeated_share(text, self.n)
            if share > self.max_share:
                return dropped(f"{share:.0%} of an answer's {self.n}-grams are repeats, above {self.max_share:.0%}")
        return KEPT
