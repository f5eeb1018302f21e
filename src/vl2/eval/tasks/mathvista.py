"""MathVista: mathematics in images, with multiple-choice and free answers. Most answers need a judge.

    testmini-*.parquet (the release's)    pid, question, query, decoded_image, choices, unit, answer, ...
    MathVista_MINI.tsv (VLMEvalKit's)    index, image, question (the query), answer, question_type, answer_type, choices

Without a judge an answer counts only if the rules can read it. The judge's prompt is our own; the harnesses give their
judges worked examples, so figures by different judges differ.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.datasets.question_answers import OPTION_LETTER
from vl2.eval.protocols import ask
from vl2.eval.public_data import Dataset, images_of, is_blank, read_rows, stems_of, texts
from vl2.eval.score.multiple_choice import (
    MathVistaQuestion,
    is_right,
    lmms_eval_reading,
    normalize_reading,
    vlmevalkit_value,
)
from vl2.eval.task import DataSource, Item, JudgeRule, Protocol, Score, Task, mean_score
from vl2.process.conversation import Turn, user_turn

_NUMBER = "Answer the question using a single"
FORMS = {  # by answer type and decimal places
    ("integer", 0): f"{_NUMBER} integer number.",
    ("float", 1): f"{_NUMBER} floating-point number with one decimal place.",
    ("float", 2): f"{_NUMBER} floating-point number with two decimal places.",
    ("list", 0): "Answer the question using a Python list.",
}


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder, split = source.folder(task), source.part(task)
    stems = stems_of(split, tsv={"testmini": "MathVista_MINI"})
    for row in read_rows(folder, stems, ("answer", "question_type", "answer_type")):
        id = str(row.get("pid", row.get("index")))
        precision = row.get("precision")
        yield Item(
            id=id,
            question=row.get("query") or row["question"],
            images=images_of(row.get("decoded_image") or row["image"], folder, id),
            gold="" if is_blank(row["answer"]) else str(row["answer"]),
            part=str(row.get("task", "")),
            notes={
                "is_multiple_choice": row["question_type"] == "multi_choice",
                "answer_type": row["answer_type"],
                "choices": [] if is_blank(row.get("choices")) else texts(row["choices"]),
                "question": row["question"],
                "unit": "" if is_blank(row.get("unit")) else row["unit"],
                "precision": 0 if precision is None or is_blank(precision) else int(float(precision)),
            },
        )


def question_of(item: Item) -> MathVistaQuestion:
    notes = item.notes
    return MathVistaQuestion(
        is_multiple_choice=bool(notes.get("is_multiple_choice")),
        answer_type=str(notes.get("answer_type", "text")),
        choices=tuple(notes.get("choices", ())),
        precision=int(notes.get("precision", 0)),
        answer=str(item.gold),
    )


def ask_lmms(item: Item) -> list[Turn]:
    """Ask as lmms-eval's `mathvista_testmini_format` does: its own prompt, with an instruction about the form."""
    question, unit = question_of(item), item.notes.get("unit")
    lines = [str(item.notes.get("question", item.question)) + (f" (Unit: {unit})" if unit else "")]
    lines += [f"{letter}. {choice}" for letter, choice in question.letters().items()]
    form = OPTION_LETTER if question.is_multiple_choice else FORMS.get((question.answer_type, question.precision))
    return [user_turn("\n".join([*lines, *([form] if form else [])]).strip(), item.images)]


def score_vlmevalkit(item: Item, answer: str) -> Score:
    question, said = question_of(item), answer.rstrip(".")
    value = vlmevalkit_value(question, said)
    if value is None:
        return Score(value=0.0, is_undecided=True)
    reading = str(value)
    if question.is_multiple_choice:
        return Score(value=float(question.letters().get(reading) == question.answer), read=reading)
    return Score(value=1.0, read=reading)


def score_lmms(item: Item, answer: str) -> Score:
    question = question_of(item)
    reading = lmms_eval_reading(question, answer)
    if reading is None:
        return Score(value=0.0, is_undecided=True)
    return Score(value=float(is_right(question, reading)), read=normalize_reading(question, reading) or "")


def _judge_prompt(item: Item, answer: str) -> str:
    return (
        "Read the final answer off a reply to a question. Write nothing but that answer: the letter of the option for "
        "a multiple-choice question, else the bare number, text or list, with the decimals that are asked for. "
        f"If the reply gives no answer, write nothing.\n\nQuestion: {item.question}\n\nReply: {answer}\n\nFinal answer:"
    )


def _judge_score(item: Item, reply: str) -> Score:
    question = question_of(item)
    reading = reply.strip().rstrip(".")  # otherwise "C." would match the choice with the nearest spelling
    if not reading:
        return Score(value=0.0, read="nothing (judge)")
    return Score(value=float(is_right(question, reading)), read=f"{normalize_reading(question, reading)} (judge)")


JUDGE = JudgeRule(prompt=_judge_prompt, score=_judge_score)
LMMS_EVAL_SAYS = 'A bare number, an option\'s text or `The answer is "...".`; all else needs a judge.'
TASK = Task(
    name="mathvista",
    title="MathVista (testmini): mathematics in images",
    layout="reads testmini-*.parquet (pid, query, decoded_image, choices, answer, ...) or MathVista_MINI.tsv",
    folders=("mathvista", "MathVista"),
    read=read,
    split="testmini",
    protocols={
        "paper": Protocol(ask=ask, score=score_lmms, judge=JUDGE, max_new_tokens=512, says=LMMS_EVAL_SAYS),
        "vlmevalkit": Protocol(ask=ask, score=score_vlmevalkit, judge=JUDGE,
                               says="A correct bare number or a letter; all else needs a judge."),
        "lmms-eval": Protocol(ask=ask_lmms, score=score_lmms, judge=JUDGE, max_new_tokens=16384,
                              says=LMMS_EVAL_SAYS),
    },
    published_by="vlmevalkit",
    published="mathvista",
    hub=Dataset("AI4Math/MathVista", ("data/{split}-*",)),
    metric=mean_score,
)  # fmt: skip
