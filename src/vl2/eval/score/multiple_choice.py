"""The letter that an answer chooses, by five extractors. Lower-case letters are accepted by none of them.

| function | used by |
|---|---|
| vlmevalkit_letter | VLMEvalKit without a judge, for every multiple-choice set |
| lmms_eval_letter | lmms-eval's shared extractor: MMStar, RealWorldQA |
| mmbench_letter | lmms-eval's MMBench, before a judge is asked |
| mmmu_letter | MMMU's own parser, as lmms-eval runs it |
| ai2d_text | lmms-eval's AI2D, which compares what is left with the letter |

"" stands for undecided; MMMU's parser then draws at random, which is not done here.
Golden: tests/golden/scorers/multiple_choice.json.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

# What introduces a letter in a longer answer.
_PHRASES = (
    "answer is", "option is", "choice is", "i choose", "i select", "i pick", "옵션", "정답은", "답은", "답:", "答案是",
    "答案为", "选", "答えは",
)  # fmt: skip
_START, _END, _PHRASE, _ROUND, _POINT, _COLON, _CLOSED, _BLANK = 10, 9, 7, 6, 5, 4, 3, 2  # which form wins
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MMBENCH_FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")

Choices = Mapping[str, str]  # letter -> text of the option


def vlmevalkit_letter(answer: str, choices: Choices) -> str:
    """Return the only letter among the words, near the end; else the only option whose text occurs."""
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
    """Return the letter in the most trusted form, of several the last."""
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    if not text:
        return ""
    padded = f" {text} "
    found = [candidate for letter in letters for candidate in _candidates(padded, letter)]
    if not found:
        found = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    # Of equals the first letter wins, as a stable sort would have it.
    return max(found, key=lambda candidate: candidate[:2])[2] if found else ""


def _candidates(padded: str, letter: str) -> list[tuple[int, int, str]]:
    """Return (rank of the form, place, letter) for every form in which the letter occurs."""
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
    """Return the only letter among the words, bare or in one of the usual forms; else the only option named."""
    words = answer.split()
    bare = [letter for letter in letters if letter in words]
    # In a longer answer a lone A may be the article.
    if len(bare) == 1 and not ("A" in words and len(words) > 3):
        return bare[0]
    for form in _MMBENCH_FORMS:
        named = [letter for letter in letters if form.format(letter) in words]
        if len(named) == 1:
            return named[0]
    return _only_option_named(answer, choices)


def mmmu_letter(answer: str, choices: Choices) -> str:
    """Return the last letter in brackets, else before a blank, else before a full stop; else the last option named."""
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
    """Return the letter of an answer that begins with "A.", else the answer."""
    match = re.match(r"\s*([A-Z])\.", answer)
    return match[1] if match else answer


def _only_option_named(answer: str, choices: Choices) -> str:
    named = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else ""


def is_ai2d_right(answer: str, gold: str) -> bool:
    """Compare what is left of an answer with the letter, without case and punctuation."""
    return _bare(ai2d_text(answer)) == _bare(gold)


def _bare(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))
