"""Questions from the grammars of questions.toml.

A model that was asked in three ways knows three. A third of what the grammars can say is kept back from training, by
`held_out.is_held_out_phrasing`, so that a test can ask in ways that were never heard.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from pathlib import Path

from experiments.nano.draw.held_out import is_held_out_phrasing
from vl2.files import read_toml

ATTEMPTS = 64
_INNERMOST = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")


@lru_cache(maxsize=1)
def grammars() -> dict[str, dict[str, list[str]]]:
    """Return the lines of each question by language."""
    return read_toml(Path(__file__).with_name("questions.toml"))


def expand(grammar: str, rng: random.Random) -> str:
    """Return one of the sentences of a grammar; names stay in braces."""
    while (found := _INNERMOST.search(grammar)) is not None:
        options = found[1].split("|") if found[1] is not None else ["", *found[2].split("|")]
        grammar = grammar[: found.start()] + rng.choice(options) + grammar[found.end() :]
    if grammar.startswith("Please "):
        grammar = "Please " + grammar[7].lower() + grammar[8:]
    return grammar[0].upper() + grammar[1:]


def phrase(question: str, language: str, rng: random.Random, **names: str) -> str:
    """Return a way to ask that is not kept back, with the names filled in."""
    lines = grammars()[question][language]
    for _ in range(ATTEMPTS):
        sentence = expand(rng.choice(lines), rng)
        if not is_held_out_phrasing(sentence):
            return sentence.format(**names)
    raise AssertionError(f"nearly all ways to ask {question} are kept back")
