"""CountBenchQA: how many objects of a kind a photograph shows, from two to ten.

    test-*.parquet (the hub's)    image, text, question, number
    CountBenchQA.tsv (VLMEvalKit's)    index, image, question, answer

The rows of the hub have the photograph's caption, which lmms-eval puts before the question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vl2.eval.protocols import ask_short, ask_with
from vl2.eval.public_data import Dataset, images_of, read_rows, stems_of
from vl2.eval.task import DataSource, Item, Protocol, Score, Task, mean_score
from vl2.process.conversation import Turn, user_turn

_DIGITS = re.compile(r"\d+", re.ASCII)


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder, split = source.folder(task), source.part(task)
    for number, row in enumerate(read_rows(folder, stems_of(split, tsv={"test": "CountBenchQA"}), ("question",))):
        id = str(row.get("index", number))
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=str(row.get("number", row.get("answer"))),
            notes={"caption": row.get("text") or ""},
        )


def score_first_number(item: Item, answer: str) -> Score:
    """Score the first number in digits, which must be the gold one."""
    found = _DIGITS.search(answer)
    said = found.group() if found is not None else ""
    return Score(value=float(said == item.gold), read=said)


def score_contained(item: Item, answer: str) -> Score:
    """Score as VLMEvalKit does: the digits of the gold number occur in the answer, even within a longer number."""
    return Score(value=float(item.gold in answer), read=answer)


def score_exact(item: Item, answer: str) -> Score:
    return Score(value=float(answer.strip() == item.gold), read=answer.strip())


def ask_lmms(item: Item) -> list[Turn]:
    caption = item.notes.get("caption")
    before = f"{caption}\n\n" if caption else ""
    return [user_turn(f"{before}{item.question}\nAnswer with a single number.", item.images)]


TASK = Task(
    name="countbenchqa",
    title="CountBenchQA: counting objects in photographs",
    layout="reads test-*.parquet (image, question, number) or CountBenchQA.tsv",
    folders=("countbenchqa", "CountBenchQA"),
    read=read,
    split="test",
    protocols={
        "paper": Protocol(ask=ask_short, score=score_first_number, max_new_tokens=32,
                          says="The first number of the answer, in digits, must be the gold one."),
        "vlmevalkit": Protocol(
            ask=ask_with(
                " Note that: answer with a number directly e.g. 3. Do not include any additional text.",
                is_stripped=False,
            ),
            score=score_contained,
            says="VLMEvalKit: the digits of the gold number occur in the answer.",
        ),
        "lmms-eval": Protocol(ask=ask_lmms, score=score_exact, max_new_tokens=32,
                              says="lmms-eval: the answer is the gold number and nothing else."),
    },
    hub=Dataset("vikhyatk/CountBenchQA", ("data/{split}-*",)),
    metric=mean_score,
)  # fmt: skip
