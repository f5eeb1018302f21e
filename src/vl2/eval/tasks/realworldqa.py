"""RealWorldQA: 765 questions about photos, most of them taken from cars.

test-*.parquet (the release's)    image, question (options and instruction in it), answer
RealWorldQA.tsv (VLMEvalKit's)    index, image, question, A to D, answer
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.eval.protocols import PAPER, VLMEVALKIT, ask
from vl2.eval.public_data import Dataset, images_of, options_of, read_rows, stems_of
from vl2.eval.score.multiple_choice import realworldqa_point
from vl2.eval.task import DataSource, Item, Protocol, Score, Task, mean_score


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder = source.folder(task)
    stems = stems_of(source.part(task), tsv={"test": "RealWorldQA"})
    rows = read_rows(folder, stems, ("question", "answer"))
    for number, row in enumerate(rows):
        id = str(row.get("index", number))
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=str(row["answer"]).strip(),
            options=options_of(row),
        )


def score_lmms(item: Item, answer: str) -> Score:
    return Score(value=realworldqa_point(answer, item.gold), read=answer.strip())


TASK = Task(
    name="realworldqa",
    title="RealWorldQA: photos of the real world",
    layout="reads test-*.parquet (image, question, answer) or RealWorldQA.tsv",
    folders=("realworldqa", "RealWorldQA"),
    read=read,
    split="test",
    protocols={
        "paper": PAPER,
        "vlmevalkit": VLMEVALKIT,
        "lmms-eval": Protocol(ask=ask, score=score_lmms, max_new_tokens=16,
                              says="lmms-eval: a letter by the shared extractor, else exact match ignoring case."),
    },
    published_by="vlmevalkit",
    published="realworldqa",
    hub=Dataset("xai-org/RealworldQA", ("data/{split}-*",)),
    metric=mean_score,
)  # fmt: skip
