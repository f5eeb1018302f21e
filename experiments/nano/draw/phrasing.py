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
CASUAL = 0.06  # share of questions typed in haste: without a capital and without a mark at the end
INNERMOST = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")


@lru_cache(maxsize=1)
def grammars() -> dict[str, dict[str, list[str]]]:
    """Return the lines of each question by language."""
    return read_toml(Path(__file__).with_name("questions.toml"))


def expand(grammar: str, rng: random.Random) -> str:
    """Return one of the sentences of a grammar; names stay in braces."""
    while (found := INNERMOST.search(grammar)) is not None:
        grammar = grammar[: found.start()] + rng.choice(options(found)) + grammar[found.end() :]
    return as_sentence(grammar)


def options(found: re.Match[str]) -> list[str]:
    """Return what a bracket of a grammar stands for."""
    return found[1].split("|") if found[1] is not None else ["", *found[2].split("|")]


def as_sentence(text: str) -> str:
    """Return a text without brackets with a capital at its beginning alone."""
    if text.startswith("Please "):
        text = "Please " + text[7].lower() + text[8:]
    return text[0].upper() + text[1:]


def as_typed(sentence: str) -> str:
    """Return a sentence without its capital and the mark at its end."""
    return sentence[0].lower() + sentence[1:].rstrip("?.？。")


def phrase(question: str, language: str, rng: random.Random, **names: str) -> str:
    """Return a way to ask that is not kept back, with the names filled in."""
    lines = grammars()[question][language]
    for _ in range(ATTEMPTS):
        sentence = expand(rng.choice(lines), rng)
        if is_held_out_phrasing(sentence):
            continue
        typed = as_typed(sentence) if rng.random() < CASUAL else sentence
        return (sentence if is_held_out_phrasing(typed) else typed).format(**names)
    raise AssertionError(f"nearly all ways to ask {question} are kept back")
