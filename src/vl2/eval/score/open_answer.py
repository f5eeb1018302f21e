"""MMMU's open questions: right when a gold value is among what can be read off the answer. As lmms-eval runs it.

Golden: tests/golden/scorers/mmmu_open.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = tuple(":,.!?;'")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")

Value = str | float


def is_open_answer_right(answer: str, golds: Sequence[str]) -> bool:
    gold = [value for text in golds for value in _values(text)]
    said = read_open_answer(answer)
    # A number must be equal, a text must hold the gold text.
    return any(
        any(isinstance(g, str) and g in value for g in gold) if isinstance(value, str) else value in gold
        for value in said
    )


def read_open_answer(answer: str) -> list[Value]:
    """Return the texts and numbers that the answer may mean."""
    text = answer.strip().strip(".").lower()
    parts = _key_parts(text) or [text]
    numbers = [n for part in parts for rule in (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE) for n in rule.findall(part)]
    return [value for part in (*parts, *numbers) for value in _values(part)]


def _key_parts(text: str) -> list[str]:
    """Return what follows the last word like "is" or "so" of every line, the shortest of each."""
    found = []
    lines = text.split("\n")
    for number, line in enumerate(lines):
        keys = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        tails = [line.split(key)[-1].strip() for key in keys if key in line]
        best = ""
        for tail in tails:
            best = tail if not best or len(tail) < len(best) else best
        if best and best not in _TRIVIAL:
            found.append(best)
    return found


def _values(text: str) -> list[Value]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        pass
    text = text.lower()
    # A single letter must stand alone.
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
