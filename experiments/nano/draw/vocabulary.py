"""Words of pictures: names of rows, bars, people, shops and goods, out of the pinned lists, without those kept back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from experiments.nano.splits import is_test_word
from vl2.errors import UserError
from vl2.synth.words import read_passages

MONTHS = {
    "en": ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    "zh": ("一月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月", "十一月", "十二月"),
}
YEARS = tuple(str(year) for year in range(1950, 2036))
LISTS = {"en": ("nouns_en", "names_en", "places_en"), "zh": ("nouns_zh", "places_zh")}
KINDS = ("nouns", "nouns", "names", "places", "mixed", "months", "years", "codes")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@lru_cache(maxsize=16)
def read_words(path: str) -> tuple[str, ...]:
    """Read a list of words, without those kept back from training."""
    kept = tuple(name for name in read_passages(path) if not any(map(is_test_word, {name, *name.split()})))
    if not kept:
        raise UserError(f"{path} has no word that may be shown in training")
    return kept


def words_of(inputs: str, language: str, kind: str) -> tuple[str, ...]:
    """Return the list "nouns", "names" or "places"; Chinese has no list of names, and takes places."""
    name = f"{kind}_{language}"
    return read_words(str(Path(inputs) / f"words/{name if name in LISTS[language] else 'places_zh'}.txt"))


def word(rng: random.Random, inputs: str, language: str) -> str:
    """Return a word of any list, English ones as print writes them."""
    chosen = rng.choice(words_of(inputs, language, rng.choice(("nouns", "names", "places"))))
    return cased(rng, chosen) if language == "en" else chosen


def cased(rng: random.Random, text: str) -> str:
    """Return a word with a capital, in capitals, or as it is."""
    kind = rng.random()
    return text if kind < 0.3 else text.upper() if kind < 0.4 else text[0].upper() + text[1:]


def names(
    rng: random.Random, inputs: str, language: str, count: int, longest: int, kinds: tuple[str, ...] = KINDS
) -> tuple[str, ...]:
    """Return different names of one kind, at most `longest` letters each; fewer where few are that short."""
    kind = rng.choice(kinds)
    if kind == "months" and count <= len(MONTHS[language]):
        return _in_order(rng, MONTHS[language], count)
    if kind == "years":
        return _in_order(rng, YEARS, count)
    if kind == "codes":
        letter = rng.choice(LETTERS)
        found = [f"{letter}{n}" for n in rng.sample(range(1, 100), count)] if rng.random() < 0.7 else None
        return tuple(found or rng.sample(LETTERS, count))
    write = rng.choice((str, str, lambda text: text.upper())) if language == "en" else str
    found = list[str]()
    for _ in range(20 * count):
        pool = words_of(
            inputs, language, kind if kind in ("nouns", "names", "places") else rng.choice(("nouns", "places"))
        )
        one = rng.choice(pool)
        if language == "en":
            one = write(one[0].upper() + one[1:])
        if len(one) <= longest and one not in found:
            found.append(one)
        if len(found) == count:
            break
    return tuple(found)


def _in_order(rng: random.Random, pool: Sequence[str], count: int) -> tuple[str, ...]:
    """Return names that follow one another, or lie apart, in their order."""
    if rng.random() < 0.6:
        start = rng.randrange(len(pool) - count + 1)
        return tuple(pool[start : start + count])
    return tuple(sorted(rng.sample(pool, count), key=pool.index))
