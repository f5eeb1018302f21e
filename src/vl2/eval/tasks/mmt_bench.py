"""MMT-Bench: multiple choice over 162 tasks, many with several images.

MMT-Bench_VAL.tsv (VLMEvalKit's)    index, image, question, A to I, answer, category, l2-category
val-*.parquet (lmms-eval's)    the same columns
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.eval.protocols import PAPER, VLMEVALKIT, letters, score_lmms_letter
from vl2.eval.public_data import Dataset, images_of, options_of, read_rows, stems_of
from vl2.eval.task import DataSource, Item, Protocol, Task, mean_score
from vl2.process.conversation import Turn, user_turn


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder, split = source.folder(task), source.part(task)
    stems = stems_of(split, tsv={split: f"MMT-Bench_{split.upper()}"})
    for row in read_rows(folder, stems, ("index", "question", "answer")):
        id = str(row["index"])
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=str(row["answer"]).strip().upper(),
            options=options_of(row),
            part=str(row.get("l2-category", row.get("category", ""))),
        )


def ask_lmms(item: Item) -> list[Turn]:
    """Ask as lmms-eval does: it writes `<image>` into the text although the images precede it."""
    options = "\n".join(f"{letter}: {text.strip()}" for letter, text in letters(item).items())
    asked = f"Question: <image>\n{item.question.strip()}\n{options}"
    return [user_turn(f"{asked}\nAnswer the question using a single character from the given options.", item.images)]


TASK = Task(
    name="mmt_bench",
    title="MMT-Bench: multiple choice over 162 tasks",
    layout="reads MMT-Bench_VAL.tsv or val-*.parquet (index, image, question, A to I, answer, category)",
    folders=("mmt_bench", "MMT-Bench"),
    read=read,
    split="val",
    protocols={
        "paper": PAPER,
        "vlmevalkit": VLMEVALKIT,
        "lmms-eval": Protocol(ask=ask_lmms, score=score_lmms_letter, max_new_tokens=8,
                              says="lmms-eval's shared extractor: the letter in the most trusted form."),
    },
    published_by="vlmevalkit",
    published="mmt_bench",
    hub=Dataset("lmms-lab/MMT-Benchmark", ("data/{split}-*",)),
    metric=mean_score,
)  # fmt: skip
