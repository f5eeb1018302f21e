"""Drop records whose answers are not in the script of their language, such as Chinese with English mixed in.

It tells scripts apart, not languages: English and French pass for each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vl2.curate.filters.verdict import KEPT, Verdict, dropped
from vl2.curate.filters.words import CJK, texts_of
from vl2.data.record import PLACEHOLDER, Record
from vl2.errors import UserError

_WRITTEN_IN_CJK = ("zh", "ja", "ko")
_CJK = re.compile(f"[{CJK}]")
_LETTER_RUN = re.compile(f"[^\\W\\d_{CJK}]+")


def cjk_share(text: str) -> float:
    """Return the share of the words that are Chinese, Japanese or Korean characters; 0 for a text without words."""
    cjk, others = len(_CJK.findall(text)), len(_LETTER_RUN.findall(text))
    return cjk / (cjk + others) if cjk + others else 0.0


@dataclass(frozen=True, kw_only=True)
class Language:
    """`max_foreign` is the share of an answer's words that may be in the other script."""

    max_foreign: float = 0.3
    min_words: int = 8  # shorter answers are names and readings, in whatever script the picture has
    name: str = "language"

    def __post_init__(self) -> None:
        if not 0 <= self.max_foreign <= 1:
            raise UserError(f"max_foreign must be in 0..1, got {self.max_foreign}")

    def __call__(self, record: Record) -> Verdict:
        is_cjk = record.language.split("-")[0].lower() in _WRITTEN_IN_CJK
        for text in texts_of(record, "assistant"):
            prose = PLACEHOLDER.sub(" ", text)
            if len(_CJK.findall(prose)) + len(_LETTER_RUN.findall(prose)) < self.min_words:
                continue
            foreign = 1 - cjk_share(prose) if is_cjk else cjk_share(prose)
            if foreign > self.max_foreign:
                return dropped(f"{foreign:.0%} of an answer's words are not in the script of {record.language}")
        return KEPT
