"""Exact match without case, outer space and a final full stop: the rule of the tasks that are this project's own."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_FINAL = ".。!！"


def plain(text: str) -> str:
    """Return a text in one form: compatibility characters unified, no case, single blanks, no final full stop."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_FINAL).strip()


def exact_match(answer: str, golds: Sequence[str]) -> float:
    return float(plain(answer) in {plain(gold) for gold in golds})
