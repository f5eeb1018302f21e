"""How a free answer is read: a number, a count, a name, an admission that the picture does not say.

An answer may be a sentence. It counts when what it says is the gold answer and nothing beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vl2.eval.score.text_rules import MAX_RELATIVE_ERROR, plain
from vl2.eval.task import Item, Score

COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTS_ZH = "零一二三四五六七八九十"
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")
_BEFORE_NAME = re.compile(
    r"^(?:(?:this|that|it|these|they|here) (?:is|are|shows?|depicts?) |it's "
    r"|the (?:picture|drawing|image) (?:is|shows?) "
    r"|i see |这(?:个)?(?:东西)?(?:是|叫)|(?:图中|图里|画)(?:的)?(?:是|有))?(?:an? |the |some |一[个只张把条朵辆])?"
)
_ADMITS = re.compile(
    r"cannot|can not|can[’']?t\b|could ?n[o’']?t|unable|do(?:es)? ?n[o’']t|unknown|unclear|unsure|impossible|nobody can"
    r"|not (?:sure|known|shown|visible|stated|given|clear|possible|there|say)|no (?:idea|way|information)"
    r"|nothing (?:shows|says|tells)|(?:there is|i see|has) no |不知道|无法|看不出|不能|不清楚|没有|不确定|未知|说不准"
)


def numbers_of(text: str) -> list[float]:
    """Return the numbers in a text; a comma stands between thousands, except before one or two last digits."""
    return [float(_with_point(found)) for found in _NUMBER.findall(text)]


def _with_point(number: str) -> str:
    whole, _, end = number.rpartition(",")
    if whole and len(end) < 3 and "." not in number:
        number = f"{whole}.{end}"
    return number.replace(",", "") if number.count(".") <= 1 else number.replace(".", "", number.count(".") - 1)


def said_numbers(item: Item, answer: str) -> list[float]:
    """Return the different numbers of an answer that it does not repeat from the question."""
    asked = set(numbers_of(item.question))
    return list(dict.fromkeys(number for number in numbers_of(answer) if number not in asked)) or numbers_of(answer)


def score_number(item: Item, answer: str) -> Score:
    """Score the only number that is said: it must be the gold one."""
    said = said_numbers(item, answer)
    right = len(said) == 1 and said[0] == float(item.gold)
    return Score(value=float(right), read=" ".join(f"{number:g}" for number in said))


def score_near_number(item: Item, answer: str) -> Score:
    """Score the only number that is said: it may be off by 5 % of the gold one, as in ChartQA."""
    said, gold = said_numbers(item, answer), float(item.gold)
    right = len(said) == 1 and abs(said[0] - gold) <= MAX_RELATIVE_ERROR * abs(gold)
    return Score(value=float(right), read=" ".join(f"{number:g}" for number in said))


def score_count(item: Item, answer: str) -> Score:
    """Score a count, in digits or in words of English or Chinese."""
    if not _NUMBER.search(answer):
        words = re.findall(r"[a-z]+", answer.casefold())
        answer += "".join(f" {n}" for n, word in enumerate(COUNTS) if word in words)
        answer += "".join(f" {n}" for n, digit in enumerate(COUNTS_ZH) if digit in answer)
        answer += " 2" if "两" in answer else ""
    return score_number(item, answer)


def bare_name(answer: str) -> str:
    """Return a name without what a sentence puts before it: "It is a goat." gives "goat"."""
    return _BEFORE_NAME.sub("", plain(answer), count=1).rstrip("。.!").strip()


def score_name(item: Item, answer: str) -> Score:
    """Score a name, or a sentence that says just it."""
    said = bare_name(answer)
    return Score(value=float(said in {bare_name(gold) for gold in item.gold}), read=said)


def score_one_of(item: Item, answer: str) -> Score:
    """Score a name out of those that the picture shows (`notes["names"]`): the only one that the answer holds."""
    names: Sequence[str] = item.notes["names"]
    said = [name for name in names if re.search(rf"(?<![a-z]){re.escape(plain(name))}(?![a-z])", plain(answer))]
    return Score(value=float(said == [item.gold]), read=" ".join(said))


def score_lines(item: Item, answer: str) -> Score:
    """Score by the share of lines that are read exactly, in their order."""
    said = [plain(line) for line in answer.splitlines() if line.strip()]
    right = sum(plain(gold) == line for gold, line in zip(item.gold, said, strict=False))
    return Score(value=right / max(len(item.gold), len(said)), read=f"{right} of {len(item.gold)} lines")


def score_receipt_line(item: Item, answer: str) -> Score:
    """Score a line by its words and numbers: the set is not sure of marks and the blanks beside them."""
    said, gold = _parts(answer), _parts(item.gold)
    return Score(value=float(said == gold), read=" ".join(said))


def score_words(item: Item, answer: str) -> Score:
    """Score an answer that is the gold words, or that holds them in a sentence of a few more."""
    said, gold = plain(answer), plain(item.gold)
    return Score(value=float(gold in said and len(said) <= len(gold) + 30), read=said)


def score_date(item: Item, answer: str) -> Score:
    """Score a date by its words and numbers, however they are set apart; a time of day may follow."""
    said, gold = _parts(answer), _parts(item.gold)
    places = range(len(said) - len(gold) + 1)
    is_there = any(said[start : start + len(gold)] == gold for start in places)
    return Score(value=float(is_there and len(said) <= len(gold) + 6), read=answer.strip())


def _parts(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", plain(text))


def admits(answer: str) -> bool:
    """Tell whether an answer says that the picture does not tell."""
    return bool(_ADMITS.search(plain(answer)))


def score_admission(item: Item, answer: str) -> Score:
    is_admitted = admits(answer)
    return Score(value=float(is_admitted), read="cannot tell" if is_admitted else "invented")
