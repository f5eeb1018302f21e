"""Read the chosen option from an answer, by the extractors of the harnesses, and other answers of their benchmarks."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vl2.eval.score.text_rules import edit_distance

# Five extractors of the letter that an answer chooses. None of them accepts lower-case letters.
#
# | function | used by |
# |---|---|
# | vlmevalkit_letter | VLMEvalKit without a judge, for every multiple-choice set |
# | lmms_eval_letter | lmms-eval's shared extractor: MMStar, RealWorldQA |
# | mmbench_letter | lmms-eval's MMBench, before the judge |
# | mmmu_letter | MMMU's own parser, as in lmms-eval |
# | ai2d_text | lmms-eval's AI2D, which compares the extracted text with the letter |
#
# "" means undecided. MMMU's parser would then choose a letter at random, which is not done here.
# Golden: tests/golden/scorers/multiple_choice.json.

# Phrases that introduce a letter in a longer answer.
_PHRASES = (
    "answer is", "option is", "choice is", "i choose", "i select", "i pick", "옵션", "정답은", "답은", "답:", "答案是",
    "答案为", "选", "答えは",
)  # fmt: skip
_START, _END, _PHRASE, _ROUND, _POINT, _COLON, _CLOSED, _BLANK = 10, 9, 7, 6, 5, 4, 3, 2  # priority of each form
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MMBENCH_FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")

Choices = Mapping[str, str]  # letter -> text of the option


def vlmevalkit_letter(answer: str, choices: Choices) -> str:
    """Return the only letter among the words if it is near the end, else the only option whose text occurs."""
    if any(refusal in answer for refusal in _REFUSALS):
        return ""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return ""
    if len(answer) > 2 * sum(len(text) for text in choices.values()):
        return ""
    return _only_option_named(answer, choices)


def lmms_eval_letter(answer: str, letters: Sequence[str] = "ABCD") -> str:
    """Return the letter in the form of the highest priority; of several the last one."""
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    if not text:
        return ""
    padded = f" {text} "
    found = [candidate for letter in letters for candidate in _candidates(padded, letter)]
    if not found:
        found = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    # On ties the first letter wins, as with a stable sort.
    return max(found, key=lambda candidate: candidate[:2])[2] if found else ""


def _candidates(padded: str, letter: str) -> list[tuple[int, int, str]]:
    """Return (priority, position, letter) for every form in which the letter occurs."""
    forms = ((f"({letter})", _ROUND), (f"{letter}.", _POINT), (f"{letter}:", _COLON), (f"{letter})", _CLOSED),
             (f"{letter} ", _BLANK))  # fmt: skip
    found = [(rank, padded.rfind(form), letter) for form, rank in forms if form in padded]
    lower = padded.lower()
    for phrase in _PHRASES:
        start = lower.find(phrase)
        at = padded.find(letter, start + len(phrase)) if start >= 0 else -1
        if at >= 0:
            found.append((_PHRASE, at, letter))
    text = padded.strip()
    if text.startswith(letter) and not text[1:2].isalpha():
        found.append((_START, 0, letter))
    if text.endswith(letter) and not text[-2:-1].isalpha():
        found.append((_END, len(padded) - 1, letter))
    return found


def mmbench_letter(answer: str, choices: Choices, letters: Sequence[str] = "ABCDE") -> str:
    """Return the only letter among the words, bare or in a common form, else the only option whose text occurs."""
    words = answer.split()
    bare = [letter for letter in letters if letter in words]
    # In a longer answer a single A may be the article.
    if len(bare) == 1 and not ("A" in words and len(words) > 3):
        return bare[0]
    for form in _MMBENCH_FORMS:
        named = [letter for letter in letters if form.format(letter) in words]
        if len(named) == 1:
            return named[0]
    return _only_option_named(answer, choices)


def mmmu_letter(answer: str, choices: Choices) -> str:
    """Return the last letter in parentheses, else before a space, else before a period, else the last option named."""
    text = answer
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [letter for letter in choices if form.format(letter) in text]
        if named:
            return max(named, key=lambda letter: text.rfind(place.format(letter)))
    lower = text.lower()
    named = [letter for letter in choices if choices[letter].lower() in lower] if len(text.split()) > 5 else []
    return max(named, key=lambda letter: lower.rfind(choices[letter].lower()), default="")


def ai2d_text(answer: str) -> str:
    """Return the letter of an answer that begins like "A.", otherwise the whole answer."""
    match = re.match(r"\s*([A-Z])\.", answer)
    return match[1] if match else answer


def _only_option_named(answer: str, choices: Choices) -> str:
    named = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else ""


def is_ai2d_right(answer: str, gold: str) -> bool:
    """Compare the extracted text with the letter, ignoring case and punctuation."""
    return _strip_punctuation(ai2d_text(answer)) == _strip_punctuation(gold)


def _strip_punctuation(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


# RealWorldQA as scored by lmms-eval: a letter by the shared extractor, other answers by exact match ignoring case.
#
# Golden: tests/golden/scorers/realworldqa.json.


def realworldqa_point(answer: str, gold: str) -> float:
    gold = gold.strip()
    if gold.upper() in ("A", "B", "C", "D"):
        return float(lmms_eval_letter(answer) == gold.upper())
    return float(answer.lower().strip().rstrip(".") == gold.lower())


# MMMU's open questions, as in lmms-eval: correct if a gold value is among the values read from the answer.
#
# Golden: tests/golden/scorers/mmmu_open.json.

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = tuple(":,.!?;'")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")

ReadValue = str | float


def is_open_answer_right(answer: str, golds: Sequence[str]) -> bool:
    gold = [value for text in golds for value in _values(text)]
    said = read_open_answer(answer)
    # A number must be equal; a text must contain the gold text.
    return any(
        any(isinstance(g, str) and g in value for g in gold) if isinstance(value, str) else value in gold
        for value in said
    )


def read_open_answer(answer: str) -> list[ReadValue]:
    """Return the texts and numbers that can be read from an answer."""
    text = answer.strip().strip(".").lower()
    parts = _key_parts(text) or [text]
    numbers = [n for part in parts for rule in (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE) for n in rule.findall(part)]
    return [value for part in (*parts, *numbers) for value in _values(part)]


def _key_parts(text: str) -> list[str]:
    """Return, for every line, the shortest text after a key word such as "is" or "so"."""
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


def _values(text: str) -> list[ReadValue]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        pass
    text = text.lower()
    # A single letter must be a separate word.
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


# MathVista: the answers that can be scored without a judge. All others need a language model to read them.
#
# VLMEvalKit scores only answers that are correct verbatim (a bare number, or a letter). lmms-eval also scores a wrong
# bare number, the text of an option, and `The answer is "...".`.
#
# Golden: tests/golden/scorers/mathvista_rules.json.


@dataclass(frozen=True, kw_only=True)
class MathVistaQuestion:
    """The properties of a question that the rules need."""

    is_multiple_choice: bool
    answer_type: str  # integer, float, text or list
    choices: tuple[str, ...]
    precision: int  # decimal places of a float
    answer: str

    def letters(self) -> dict[str, str]:
        return {chr(ord("A") + i): choice for i, choice in enumerate(self.choices)}


def vlmevalkit_value(question: MathVistaQuestion, answer: str) -> str | int | float | None:
    """Return the letter or number that the answer is, or None if VLMEvalKit would ask its judge."""
    if question.is_multiple_choice:
        return vlmevalkit_letter(answer, question.letters()) or None
    value, gold = _number_of_type(question, answer), _number_of_type(question, question.answer)
    return value if value is not None and value == gold else None


def lmms_eval_reading(question: MathVistaQuestion, answer: str) -> str | None:
    """Return the part of the answer that lmms-eval scores, or None if it would ask its judge."""
    if not answer:
        return ""
    if question.is_multiple_choice and answer in question.choices:
        return answer
    value = _number_of_type(question, answer)
    if value is not None:
        return str(value)
    quoted = re.search(r'The answer is "(.*)"\.', answer)
    return quoted[1] if quoted else None


def normalize_reading(question: MathVistaQuestion, reading: str) -> str | None:
    """Convert a reading (of the rules or of a judge) to the form of the gold answer; None if that is not possible."""
    if not question.is_multiple_choice:
        try:
            if question.answer_type == "integer":
                return str(int(float(reading)))
            return str(round(float(reading), question.precision)) if question.answer_type == "float" else reading
        except (ValueError, OverflowError):
            return None
    reading = reading.strip()
    in_brackets = re.search(r"\(([a-zA-Z])\)", reading)
    letter = in_brackets[1].upper() if in_brackets else reading
    return question.letters().get(letter) or _nearest(letter, question.choices)


def is_right(question: MathVistaQuestion, reading: str) -> bool:
    """Return whether a reading, by the rules or by a judge, equals the gold answer."""
    normalized = normalize_reading(question, reading)
    return normalized is not None and normalized.strip() == question.answer.strip()


def _nearest(text: str, choices: Sequence[str]) -> str:
    return min(choices, key=lambda choice: edit_distance(text, choice))


def _number_of_type(question: MathVistaQuestion, text: str) -> int | float | None:
    try:
        if question.answer_type == "integer":
            return int(text)
        return float(text) if question.answer_type == "float" else None
    except ValueError:
        return None
