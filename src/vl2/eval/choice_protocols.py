"""Multiple choice as the paper's protocol and the two harnesses ask and read it, for the benchmarks that share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vl2.datasets.question_answers import OPTION_LETTER
from vl2.eval.asking import ask_letter, lettered, letters
from vl2.eval.score.exact import exact_match
from vl2.eval.score.multiple_choice import lmms_eval_letter, mmbench_letter, vlmevalkit_letter
from vl2.eval.task import Item, JudgeRule, Protocol, Result, Score, mean_score
from vl2.process.conversation import Turn, user_turn

SELECT = "Please select the correct answer from the options above. \n"
MAX_NEW_TOKENS = 512  # of VLMEvalKit's adapter for this model

Read = Callable[[str, dict[str, str]], str]

VLMEVALKIT_SAYS = (
    "VLMEvalKit: the only letter among the words, near the end, else the only option that is named; what is neither "
    "goes to a judge and counts as wrong without one."
)


def vlmevalkit_prompt(item: Item) -> str:
    """Return the text that VLMEvalKit's multiple-choice sets ask with."""
    hint = item.notes.get("hint")
    lines = [f"Hint: {hint}"] if hint else []
    lines.append(f"Question: {item.question}")
    if item.options:
        lines += ["Options:", lettered(item.options), SELECT]
    return "\n".join(lines)


def ask_vlmevalkit(item: Item) -> list[Turn]:
    return [user_turn(vlmevalkit_prompt(item), item.images)]


def ask_mmbench(item: Item, instruction: str = OPTION_LETTER) -> list[Turn]:
    """Ask as lmms-eval's MMBench: hint, question and options in one."""
    hint = item.notes.get("hint")
    text = f"{hint + ' ' if hint else ''}{item.question} There are several options:\n{lettered(item.options)}"
    return [user_turn(f"{text}\n\n{instruction}", item.images)]


def ask_with_options(suffix: str, *, is_stripped: bool = True) -> Callable[[Item], list[Turn]]:
    """Return what asks the question, its options if they are not part of it, and an instruction."""

    def ask(item: Item) -> list[Turn]:
        options = f"\n{lettered(item.options)}" if item.options else ""
        question = item.question.strip() if is_stripped else item.question
        return [user_turn(f"{question}{options}{suffix}", item.images)]

    return ask


def score_letter(read: Read, *, asks_judge: bool = False) -> Callable[[Item, str], Score]:
    """Return what compares the letter that an extractor reads with the gold one."""

    def score(item: Item, answer: str) -> Score:
        if not item.options and len(str(item.gold)) != 1:
            return Score(value=exact_match(answer, [str(item.gold)]), read=answer)
        said = read(answer.rstrip("."), choices_of(item))
        return Score(value=float(said != "" and said == item.gold), read=said, is_undecided=asks_judge and not said)

    return score


def choices_of(item: Item) -> dict[str, str]:
    """Return the options by their letters; A to D without texts where they are part of the question.

    With an empty text an option can be named by its letter alone: with "d" as its text, "dog" would name D.
    """
    return letters(item) or dict.fromkeys("ABCD", "")


def judge_by_letter(choices: Callable[[Item], dict[str, str]], gold: Callable[[Item], str]) -> JudgeRule:
    """Return the rule by which a judge says which of the choices an answer means."""

    def prompt(item: Item, answer: str) -> str:
        texts = list(choices(item).values())
        options = lettered(texts) if any(texts) else ""  # else the question holds them
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
# The paper prints no prompt for these. This is the model's own short form, read by the same rule.
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
    """Return one result per question, right only if every rotation of the options is answered rightly."""
    merged: dict[str, Result] = {}
    for result in results:
        question = result.cluster or result.id
        before = merged.get(question)
        score = float(result.score == 1 and (before is None or before.score == 1))
        merged[question] = replace(before or result, id=question, cluster="", part=result.part, score=score)
    return list(merged.values())


def circular_accuracy(results: Sequence[Result]) -> dict[str, float]:
    """Return the accuracy over questions, right only if every rotation of the options is answered rightly."""
    return mean_score(merge_rotations(results))
