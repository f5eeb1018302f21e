"""MMT-Bench: multiple choice over 162 tasks, many with several pictures.

MMT-Bench_VAL.tsv (VLMEvalKit's)    index, image, question, A to I, answer, category, l2-category
val-*.parquet (lmms-eval's)    the same columns
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.eval.choice_ways import PAPER, VLMEVALKIT, lmms_eval_way
from vl2.eval.rows import images_of, options_of, read_rows
from vl2.eval.task import Item, Task, Where, mean_score


def read(task: Task, where: Where) -> Iterator[Item]:
    folder, split = where.folder(task), where.split or "val"
    stems = (f"MMT-Bench_{split.upper()}", f"{split}*", f"data/{split}*")
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


TASK = Task(
    name="mmt_bench",
    title="MMT-Bench: multiple choice over 162 tasks",
    layout="reads MMT-Bench_VAL.tsv or val-*.parquet (index, image, question, A to I, answer, category)",
    folders=("mmt_bench", "MMT-Bench"),
    read=read,
    ways={
        "paper": PAPER,
        "vlmevalkit": VLMEVALKIT,
        "lmms-eval": lmms_eval_way("\nAnswer the question using a single character from the given options.",
                                   max_new_tokens=8),
    },
    published_by="vlmevalkit",
    published="mmt_bench",
    metric=mean_score,
)  # fmt: skip
