"""Words and phrasings that training never shows, by rules that a test can apply without a list.

A model that was asked in every way and shown every word would be tested on what it has by heart. Groups of NLVR, shops
of SROIE, photographs and words are kept back by the rules of `splits.py`, one in five; so is a third of the
ways to ask.
"""

from __future__ import annotations

import hashlib
import re

from experiments.nano.splits import is_test_word

PHRASINGS_ONE_IN = 3
_WORD = re.compile(r"[^\W\d_]+")
LEAST_LETTERS = 4  # shorter English words are in every text: to leave them out would leave no text


def has_held_out_word(text: str) -> bool:
    """Tell whether a running text has a word that is kept back; a run of Chinese counts as one."""
    return any(len(word) >= _least(word) and is_test_word(word) for word in _WORD.findall(text))


def _least(word: str) -> int:
    return LEAST_LETTERS if word.isascii() else 1


def is_held_out_phrasing(phrasing: str) -> bool:
    """Tell whether a question, with {names} in place of what it asks about, is kept back."""
    return int(hashlib.sha256(phrasing.encode()).hexdigest(), 16) % PHRASINGS_ONE_IN == 0
