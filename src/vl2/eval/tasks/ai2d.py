"""AI2D: multiple choice about diagrams of science textbooks.

test-*.parquet (lmms-eval's)    question, options, answer (a number), image
AI2D_TEST.tsv (VLMEvalKit's)    index, image, question, A to D, answer, category
"""

from __future__ import annotations

import string
from collections.abc import Iterator

from vl2.datasets.question_answers import OPTION_LETTER
from vl2.eval.protocols import PAPER, VLMEVALKIT, ask_with_options
from vl2.eval.public_data import Dataset, images_of, options_of, read_rows, stems_of, texts
from vl2.eval.score.multiple_choice import ai2d_text, is_ai2d_right
from vl2.eval.task import DataSource, Item, Protocol, Score, Task, mean_score


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder = source.folder(task)
    stems = stems_of(source.part(task), tsv={"test": "AI2D_TEST"})
    rows = read_rows(folder, stems, ("question", "answer"))
    for number, row in enumerate(rows):
        id = str(row.get("index", number))
        answer = str(row["answer"]).strip()
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=string.ascii_uppercase[int(answer)] if answer.isdigit() else answer.upper(),
            options=tuple(texts(row["options"])) if "options" in row else options_of(row),
        )


def score_lmms(item: Item, answer: str) -> Score:
    return Score(value=float(is_ai2d_right(answer, item.gold)), read=ai2d_text(answer))


TASK = Task(
    name="ai2d",
    title="AI2D: multiple choice about diagrams",
    layout="reads test-*.parquet (question, options, answer, image) or AI2D_TEST.tsv",
    folders=("ai2d", "AI2D"),
    read=read,
    split="test",
    protocols={
        "paper": PAPER,
        "vlmevalkit": VLMEVALKIT,
        "lmms-eval": Protocol(
            ask=ask_with_options(f"\n{OPTION_LETTER}", is_stripped=False),
            score=score_lmms,
            says="lmms-eval: the letter before a period at the beginning, else the whole answer, ignoring case.",
            max_new_tokens=16,
        ),
    },
    published_by="vlmevalkit",
    published="ai2d",
    hub=Dataset("lmms-lab/ai2d", ("data/{split}-*",)),
    metric=mean_score,
)
