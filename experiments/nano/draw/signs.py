"""Signs put into lines of text: an encyclopedia has one question mark in 90,000 letters, and hardly a "€".

A model that saw as few of them reads "!" as "l" and "?" as "7", because letters and digits are far more likely.
"""

from __future__ import annotations

import random

ENDS = {"en": "?!?!?!.:;,", "zh": "？！？！？！。：；，"}
JOINS = {
    "en": (" & ", "-", "/", " - ", " + ", ": ", ", ", "; ", ". ", " = ", "_", " * "),
    "zh": tuple("、，：；·/-＋&"),
}
QUOTES = {
    "en": ('""', '""', '""', "()", "[]", "''", "“”", "‘’", "<>"),
    "zh": ("“”", "《》", "（）", "「」", "【】", '""'),
}
UNITS = {"en": ("%", "°", " km", " kg", "+"), "zh": ("元", "%", "年", "月", "号", "个", "岁", "米")}
CURRENCIES = "$$$€€££¥"


def _amount(rng: random.Random, language: str) -> str:
    """Return a price, a time, a part of a code, or a number with its unit."""
    number = rng.randint(0, 10 ** rng.randint(1, 4))
    match rng.randrange(6):
        case 0 | 1:
            return f"{rng.choice(CURRENCIES)}{number % 1000}.{rng.randint(0, 99):02d}"
        case 2:
            return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"
        case 3:
            return f"{rng.choice('#@#*')}{number}"
        case 4:
            return f"{number}{rng.choice(UNITS[language])}"
        case _:
            return str(number)


def with_signs(rng: random.Random, text: str, language: str) -> str:
    """Return a line with one to three changes: a mark at its end, words joined, set in quotes, or an amount."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        text = rng.choice((_ended, _ended, _joined, _quoted, _with_amount))(rng, text, language)
    return text


def _gaps(text: str, language: str) -> list[int]:
    """Return where words begin, but for the first: in Chinese, every character."""
    if language == "zh":
        return list(range(1, len(text)))
    return [at + 1 for at, letter in enumerate(text) if letter == " " and 0 < at < len(text) - 1]


def _ended(rng: random.Random, text: str, language: str) -> str:
    return text.rstrip(" .,;:?!，。；：？！") + rng.choice(ENDS[language])


def _joined(rng: random.Random, text: str, language: str) -> str:
    gaps = _gaps(text, language)
    if not gaps:
        return text
    at = rng.choice(gaps)
    return text[:at].rstrip(" ,.") + rng.choice(JOINS[language]) + text[at:]


def _quoted(rng: random.Random, text: str, language: str) -> str:
    """Set the line, its beginning or its end in quotes or brackets; often with a mark before they close."""
    gaps = [0, *_gaps(text, language), len(text)]
    first, second = sorted(rng.sample(range(len(gaps)), 2))
    if rng.random() < 0.7:
        first, second = rng.choice(((0, second), (first, len(gaps) - 1), (0, len(gaps) - 1)))
    start, end = gaps[first], gaps[second]
    opening, closing = tuple(rng.choice(QUOTES[language]))
    inner = text[start:end].strip()
    if rng.random() < 0.6:
        inner = _ended(rng, inner, language)
    after = text[end:] if language == "zh" else f" {text[end:].lstrip()}".rstrip()
    return f"{text[:start]}{opening}{inner}{closing}{after}"


def _with_amount(rng: random.Random, text: str, language: str) -> str:
    """Put an amount at the beginning, between words, or at the end, there often after a colon."""
    written, space = _amount(rng, language), "" if language == "zh" else " "
    kind = rng.random()
    if kind < 0.4:
        return f"{text.rstrip(' .,;:')}{'：' if language == 'zh' else rng.choice((': ', ' ', ' '))}{written}"
    if kind < 0.6 or not (gaps := _gaps(text, language)):
        return f"{written}{space}{text}"
    at = rng.choice(gaps)
    return f"{text[:at]}{written}{space}{text[at:]}"
