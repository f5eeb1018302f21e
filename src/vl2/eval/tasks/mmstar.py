"""MMStar: 1,500 multiple-choice questions that cannot be answered without the image.

mmstar.parquet (the release's), val-*.parquet    index, question (options in it), image, answer, category
MMStar.tsv (VLMEvalKit's)    index, image, question, A to D, answer, category
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.eval.protocols import PAPER, VLMEVALKIT, lmms_eval_protocol
from vl2.eval.public_data import Dataset, images_of, options_of, read_rows, stems_of
from vl2.eval.task import DataSource, Item, Task, mean_score


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder = source.folder(task)
    split = source.part(task)
    stems = [*stems_of(split, tsv={"val": "MMStar"}), *(("mmstar",) if split == "val" else ())]
    for row in read_rows(folder, stems, ("index", "question", "answer")):
        id = str(row["index"])
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=str(row["answer"]).strip().upper(),
            options=options_of(row),
            part=str(row.get("category", "")),
        )


TASK = Task(
    name="mmstar",
    title="MMStar: multiple choice that needs the image",
    layout="reads mmstar.parquet or val-*.parquet (index, question, image, answer, category) or MMStar.tsv",
    folders=("mmstar", "MMStar"),
    read=read,
    split="val",
    protocols={
        "paper": PAPER,
        "vlmevalkit": VLMEVALKIT,
        "lmms-eval": lmms_eval_protocol("\nAnswer with the option's letter from the given choices directly"),
    },
    published_by="vlmevalkit",
    published="mmstar",
    hub=Dataset("Lin-Chen/MMStar", ("mmstar.parquet",)),
    metric=mean_score,
)
