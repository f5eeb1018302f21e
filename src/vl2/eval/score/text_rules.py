"""Compare an answer with gold texts: exact match, relaxed accuracy, edit distance, containment and VQA accuracy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

# Exact match, ignoring case, outer spaces and a final period: the rule of this project's own tasks.

_FINAL = ".。!！"


def plain(text: str) -> str:
    """Normalize a text: NFKC, case folded, single spaces, no final period or exclamation mark."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_FINAL).strip()


def exact_match(answer: str, golds: Sequence[str]) -> float:
    return float(plain(answer) in {plain(gold) for gold in golds})


# Relaxed accuracy of ChartQA, 0 or 1: a number may be off by 5 % of the gold value; a text must match ignoring case.
#
# `45%` is read as 0.45. A gold value of zero is compared as text. Commas, currencies and units are not parsed.
# VLMEvalKit strips the answer first, lmms-eval does not.
#
# Golden: tests/golden/scorers/relaxed_accuracy.json.

MAX_RELATIVE_ERROR = 0.05


def relaxed_accuracy(answer: str, gold: str, *, is_stripped: bool = True) -> float:
    """Score one answer, as in VLMEvalKit, or as in lmms-eval with `is_stripped=False`."""
    answer = answer.strip() if is_stripped else answer
    value, gold_value = _number_in_percent(answer), _number_in_percent(gold)
    if value is None or not gold_value:
        return float(answer.lower() == gold.lower())
    return float(abs(value - gold_value) / abs(gold_value) <= MAX_RELATIVE_ERROR)


def _number_in_percent(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance of two texts."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
            diagonal, row[j] = row[j], cost
    return row[-1]


# ANLS, the normalized Levenshtein similarity of DocVQA and InfoVQA, 0..1.
#
# The distance ignores case and collapses white space. It is divided by the length of the raw texts in upper case in
# lmms-eval 0.7, and in VLMEvalKit until at least commit e8e78f05 (2026-08-18); since commit 0a04a1d2 VLMEvalKit divides
# by the length of the cleaned texts. The two differ only if cleaning or upper-casing changes the length.
# A similarity below 0.5 counts as 0. The best of several gold answers counts.
#
# Golden: tests/golden/scorers/anls.json, tests/golden/scorers/anls_harnesses.json.

MIN_SIMILARITY = 0.5


def anls(answer: str, golds: Sequence[str], *, divides_cleaned: bool = False) -> float:
    best = max((_similarity(answer, gold, divides_cleaned=divides_cleaned) for gold in golds), default=0.0)
    return best if best >= MIN_SIMILARITY else 0.0


def _similarity(answer: str, gold: str, *, divides_cleaned: bool) -> float:
    cleaned = _collapse_spaces(answer), _collapse_spaces(gold)
    longest = max(map(len, cleaned if divides_cleaned else (answer.upper(), gold.upper())))
    if longest == 0:
        return 1.0
    return 1.0 - edit_distance(*cleaned) / longest


def _collapse_spaces(text: str) -> str:
    return " ".join(text.lower().split())


# OCRBench: one point if the answer contains a gold text.
#
# Handwritten formulas are compared without spaces and with case, other texts without case and line breaks. lmms-eval
# folds full-width ASCII to ASCII, VLMEvalKit does not.
#
# Golden: tests/golden/scorers/ocrbench.json.

FORMULAS = "Handwritten Mathematical Expression Recognition"  # the question type

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def ocrbench_point(answer: str, golds: Sequence[str], question_type: str, *, folds_width: bool = False) -> float:
    """Score one answer, 0 or 1, as in VLMEvalKit, or as in lmms-eval with `folds_width`."""
    text_form = _fold_width if folds_width else _one_line
    form = _without_blanks if question_type == FORMULAS else text_form
    return float(any(form(gold) in form(answer) for gold in golds))


def _without_blanks(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _fold_width(text: str) -> str:
    return _one_line(text.translate(_FULL_WIDTH))


# VQA accuracy. Answers are normalized first: lower case, no articles, number words as digits, contractions with their
# apostrophe. The harnesses differ in punctuation: lmms-eval first drops commas and question marks and splits `'s`, and
# removes a period after a digit; VLMEvalKit does neither.
#
# Golden: tests/golden/scorers/vqa_accuracy.json.

_MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}
# Without the apostrophe they count as the same answer.
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


def _without_apostrophes(word: str) -> list[str]:
    """Return a contraction without its apostrophes, and (if it has several) with each single one."""
    parts = word.split("'")
    one_left = ["".join(parts[:i]) + "'" + "".join(parts[i:]) for i in range(1, len(parts))] if len(parts) > 2 else []
    return ["".join(parts), *one_left]


_WHOLE = {form: word for word in (*_CONTRACTIONS, *_DOUBLE) for form in _without_apostrophes(word)}

Normalize = Callable[[str], str]


def lmms_eval_form(text: str) -> str:
    """Normalize an answer as lmms-eval does."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_marks(_single_line(text))
    # Remove every period that is not followed by a digit.
    return _words(re.sub(r"\.(?!\d)", "", text))


def vlmevalkit_form(text: str) -> str:
    """Normalize an answer as VLMEvalKit does."""
    return _words(vlmevalkit_punctuation(_single_line(text)))


def vlmevalkit_punctuation(text: str) -> str:
    """Remove punctuation as VLMEvalKit does; a period next to a digit stays."""
    return re.sub(r"(?<!\d)\.(?!\d)", "", _without_marks(text))


def vqa_accuracy(answer: str, golds: Sequence[str], normalize: Normalize = lmms_eval_form) -> float:
    """Return the VQA accuracy of one answer, 0..1. With a single gold answer it is always 0."""
    said = normalize(answer)
    matches = [_normalized(gold, normalize) == said for gold in golds]
    total = sum(matches)
    scores = [min(1.0, (total - is_match) / 3) for is_match in matches]
    return sum(scores) / len(scores) if scores else 0.0


@lru_cache(maxsize=4096)
def _normalized(text: str, normalize: Normalize) -> str:
    return normalize(text)


def _single_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """Remove a mark if it occurs next to a space anywhere; otherwise replace it by a space."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _MARKS:
        is_loose = f"{mark} " in text or f" {mark}" in text or has_number
        cleaned = cleaned.replace(mark, "" if is_loose else " ")
    return cleaned


def _words(text: str) -> str:
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)
