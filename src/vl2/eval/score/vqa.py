"""VQA accuracy with ten human answers (TextVQA): each is left out in turn, and min(1, matches / 3) is averaged.

Answers are normalized first: no case, no articles, number words as digits, contractions with their apostrophe. The
two harnesses differ there: lmms-eval drops commas and question marks and splits `'s` first, and removes a full stop
after a digit; VLMEvalKit does neither.

Golden: tests/golden/scorers/vqa_accuracy.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

_MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
# Written without an apostrophe they are the same answer.
_CONTRACTIONS = (
    "ain't", "aren't", "can't", "could've", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't",
    "haven't", "he'd", "he's", "how'd", "how'll", "how's", "i'd", "i'm", "i've", "isn't", "it'd", "it'll",
    "ma'am", "mightn't", "might've", "mustn't", "must've", "needn't", "not've", "o'clock", "oughtn't", "shan't",
    "she'd", "she's", "should've", "shouldn't", "somebody'll", "somebody's", "someone'll", "someone's",
    "something'd", "something'll", "that's", "there'd", "there're", "there's", "they'd", "they'll", "they're",
    "they've", "'twas", "wasn't", "we've", "weren't", "what'll", "what're", "what's", "what've", "when's",
    "where'd", "where's", "where've", "who'd", "who'll", "who's", "who've", "why'll", "why're", "why's", "won't",
    "would've", "wouldn't", "y'all", "you'd", "you'll", "you're", "you've",
)  # fmt: skip
_DOUBLE = (
    "couldn't've", "hadn't've", "he'd've", "i'd've", "it'd've", "mightn't've", "she'd've", "shouldn't've",
    "somebody'd've", "someone'd've", "something'd've", "there'd've", "they'd've", "we'd've", "who'd've",
    "wouldn't've", "y'all'd've", "you'd've",
)  # fmt: skip


def _forms(word: str) -> list[str]:
    """Return a contraction without its apostrophes, and with any one of them."""
    parts = word.split("'")
    one_left = ["".join(parts[:i]) + "'" + "".join(parts[i:]) for i in range(1, len(parts))] if len(parts) > 2 else []
    return ["".join(parts), *one_left]


_WHOLE = {form: word for word in (*_CONTRACTIONS, *_DOUBLE) for form in _forms(word)}

Normalize = Callable[[str], str]


def lmms_eval_form(text: str) -> str:
    """Return an answer as lmms-eval compares it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_marks(_one_line(text))
    # Any full stop that no digit follows goes.
    return _words(re.sub(r"\.(?!\d)", "", text))


def vlmevalkit_form(text: str) -> str:
    """Return an answer as VLMEvalKit compares it."""
    return _words(vlmevalkit_punctuation(_one_line(text)))


def vlmevalkit_punctuation(text: str) -> str:
    """Remove punctuation as VLMEvalKit does; a full stop that touches a digit stays."""
    return re.sub(r"(?<!\d)\.(?!\d)", "", _without_marks(text))


def vqa_accuracy(answer: str, golds: Sequence[str], normalize: Normalize = lmms_eval_form) -> float:
    """Score one answer, 0..1. With a single gold answer the score is always 0."""
    said = normalize(answer)
    matches = [_normalized(gold, normalize) == said for gold in golds]
    total = sum(matches)
    scores = [min(1.0, (total - is_match) / 3) for is_match in matches]
    return sum(scores) / len(scores) if scores else 0.0


@lru_cache(maxsize=4096)
def _normalized(text: str, normalize: Normalize) -> str:
    return normalize(text)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """Remove a mark that stands beside a blank anywhere, put a blank where it stands between letters only."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _MARKS:
        is_loose = f"{mark} " in text or f" {mark}" in text or has_number
        cleaned = cleaned.replace(mark, "" if is_loose else " ")
    return cleaned


def _words(text: str) -> str:
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)
