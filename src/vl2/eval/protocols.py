"""Prompts and scoring functions that several tasks share, by the protocols of the paper and the two harnesses.

Unless a protocol differs, a prompt consists of the images, the question, and optionally an instruction about the form
of the answer.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import replace

from vl2.datasets.question_answers import OPTION_LETTER, SHORT_ANSWER
from vl2.eval.public_data import texts
from vl2.eval.score.boxes import HIT, iou, our_boxes
from vl2.eval.score.multiple_choice import lmms_eval_letter, mmbench_letter, vlmevalkit_letter
from vl2.eval.score.text_rules import exact_match, plain, relaxed_accuracy
from vl2.eval.task import Item, JudgeRule, Protocol, Result, Score, mean_score
from vl2.process.conversation import Turn, user_turn

Ask = Callable[[Item], list[Turn]]


def ask(item: Item) -> list[Turn]:
    """Ask the bare question."""
    return [user_turn(item.question, item.images)]


def ask_with(suffix: str, *, is_stripped: bool = True) -> Ask:
    """Return a function that asks the question followed by `suffix`; some harnesses do not strip the question."""
    return lambda item: [user_turn((item.question.strip() if is_stripped else item.question) + suffix, item.images)]


ask_short = ask_with(f"\n{SHORT_ANSWER}")
ask_short_as_is = ask_with(f"\n{SHORT_ANSWER}", is_stripped=False)


def lettered(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def letters(item: Item) -> dict[str, str]:
    """Return the options by their letters."""
    return dict(zip(string.ascii_uppercase, item.options, strict=False))


def ask_letter(item: Item) -> list[Turn]:
    """Ask for the letter of an option, or for a short answer if the question has no options."""
    if not item.options:
        return ask_short(item)
    return [user_turn(f"{item.question.strip()}\n{lettered(item.options)}\n{OPTION_LETTER}", item.images)]


def score_exact(item: Item, answer: str) -> Score:
    return Score(value=exact_match(answer, texts(item.gold)), read=plain(answer))


def score_relaxed(item: Item, answer: str) -> Score:
    return Score(value=max(relaxed_accuracy(answer, gold) for gold in texts(item.gold)), read=answer.strip())


def score_yes_no(item: Item, answer: str) -> Score:
    """Score an answer that begins with yes or no, in English or Chinese."""
    said = read_yes_no(answer)
    return Score(value=float(said == item.gold), read=said)


def read_yes_no(answer: str) -> str:
    """Return "yes" or "no" if the answer begins with it in English or Chinese, otherwise ""."""
    text = plain(answer)
    if text.startswith(("no", "没", "不", "无", "否", "false")):
        return "no"
    return "yes" if text.startswith(("yes", "有", "是", "对", "true")) else ""


def score_first_box(item: Item, answer: str) -> Score:
    """Score the first box of an answer against the gold box, both in pixels of the image."""
    boxes = our_boxes(answer, tuple(item.notes["size"]))
    overlap = iou(boxes[0], item.gold[0]) if boxes else 0.0
    read = f"IoU {overlap:.2f}" if boxes else "no box"
    return Score(value=float(overlap >= HIT), read=read)


SELECT = "Please select the correct answer from the options above. \n"
MAX_NEW_TOKENS = 512  # of VLMEvalKit's adapter for this model

Read = Callable[[str, dict[str, str]], str]

VLMEVALKIT_SAYS = (
    "VLMEvalKit: the only letter among the words, near the end, else the only option that is named; what is neither "
    "goes to a judge and counts as wrong without one."
)


def vlmevalkit_prompt(item: Item) -> str:
    """Return the prompt of VLMEvalKit's multiple-choice datasets."""
    hint = item.notes.get("hint")
    lines = [f"Hint: {hint}"] if hint else []
    lines.append(f"Question: {item.question}")
    if item.options:
        lines += ["Options:", lettered(item.options), SELECT]
    return "\n".join(lines)


def ask_vlmevalkit(item: Item) -> list[Turn]:
    return [user_turn(vlmevalkit_prompt(item), item.images)]


def ask_mmbench(item: Item, instruction: str = OPTION_LETTER) -> list[Turn]:
    """Ask as lmms-eval's MMBench does: hint, question, options and instruction."""
    hint = item.notes.get("hint")
    text = f"{hint + ' ' if hint else ''}{item.question} There are several options:\n{lettered(item.options)}"
    return [user_turn(f"{text}\n\n{instruction}", item.images)]


def ask_with_options(suffix: str, *, is_stripped: bool = True) -> Callable[[Item], list[Turn]]:
    """Return a function that asks the question, its options (unless they are in the question) and `suffix`."""

    def ask(item: Item) -> list[Turn]:
        options = f"\n{lettered(item.options)}" if item.options else ""
        question = item.question.strip() if is_stripped else item.question
        return [user_turn(f"{question}{options}{suffix}", item.images)]

    return ask


def score_letter(read: Read, *, asks_judge: bool = False) -> Callable[[Item, str], Score]:
    """Return a function that scores the letter that an extractor reads from an answer."""

    def score(item: Item, answer: str) -> Score:
        if not item.options and len(str(item.gold)) != 1:
            return Score(value=exact_match(answer, [str(item.gold)]), read=answer)
        said = read(answer.rstrip("."), choices_of(item))
        return Score(value=float(said != "" and said == item.gold), read=said, is_undecided=asks_judge and not said)

    return score


def choices_of(item: Item) -> dict[str, str]:
    """Return the options by their letters, or A to D with empty texts if the options are part of the question.

    An option with an empty text can only be named by its letter. If the letter were its text, "dog" would name D.
    """
    return letters(item) or dict.fromkeys("ABCD", "")


def judge_by_letter(choices: Callable[[Item], dict[str, str]], gold: Callable[[Item], str]) -> JudgeRule:
    """Return a judge rule that asks which of the choices an answer means."""

    def prompt(item: Item, answer: str) -> str:
        texts = list(choices(item).values())
        options = lettered(texts) if any(texts) else ""  # otherwise the question contains them
        return (
            "Which option does this answer mean? Reply with its letter alone, or Z if it means none of them.\n\n"
            f"Question: {item.question}\n{options}\n\nAnswer: {answer}"
        )

    def score(item: Item, reply: str) -> Score:
        said = vlmevalkit_letter(reply, {**choices(item), "Z": "none of them"})
        return Score(value=float(said != "" and said == gold(item)), read=f"{said or 'Z'} (judge)")

    return JudgeRule(prompt=prompt, score=score)


JUDGE = judge_by_letter(choices_of, lambda item: str(item.gold))

VLMEVALKIT = Protocol(
    ask=ask_vlmevalkit,
    score=score_letter(vlmevalkit_letter, asks_judge=True),
    says=VLMEVALKIT_SAYS,
    max_new_tokens=MAX_NEW_TOKENS,
    judge=JUDGE,
)
# The paper gives no prompt for multiple choice. This is a short prompt of our own, scored by VLMEvalKit's rule.
PAPER = Protocol(
    ask=ask_letter,
    score=score_letter(vlmevalkit_letter),
    says="The only letter among the words, near the end, else the only option that is named.",
    max_new_tokens=64,
)


score_lmms_letter = score_letter(lambda answer, choices: lmms_eval_letter(answer, list(choices)[:4]))


def lmms_eval_protocol(suffix: str, *, max_new_tokens: int = 16) -> Protocol:
    return Protocol(
        ask=ask_with_options(suffix),
        score=score_lmms_letter,
        says="lmms-eval's shared extractor: the letter in the most trusted form.",
        max_new_tokens=max_new_tokens,
    )


def lmms_mmbench_protocol(instruction: str = OPTION_LETTER, *, max_new_tokens: int) -> Protocol:
    return Protocol(
        ask=lambda item: ask_mmbench(item, instruction),
        score=score_letter(mmbench_letter),
        says="lmms-eval's rule step: the only letter, bare or in a usual form, else the only option that is named.",
        max_new_tokens=max_new_tokens,
    )


def merge_rotations(results: Sequence[Result]) -> list[Result]:
    """Return one result per question, which is correct only if every rotation of its options is."""
    merged: dict[str, Result] = {}
    for result in results:
        question = result.cluster or result.id
        before = merged.get(question)
        score = float(result.score == 1 and (before is None or before.score == 1))
        merged[question] = replace(before or result, id=question, cluster="", part=result.part, score=score)
    return list(merged.values())


def circular_accuracy(results: Sequence[Result]) -> dict[str, float]:
    """Return the accuracy over questions, which are correct only if every rotation of their options is."""
    return mean_score(merge_rotations(results))
