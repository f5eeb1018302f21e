"""ChartQA: questions about charts, half of them written by people, scored by relaxed accuracy. Files:

test-*.parquet (lmms-eval's)    type, question, answer, image
ChartQA_TEST.tsv (VLMEvalKit's)    index, image, question, answer, split
test/test_human.json, test/test_augmented.json, test/png/ (the release)    imgname, query, label
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vl2.data.json_stream import list_rows
from vl2.data.raw_files import find_files
from vl2.eval.protocols import ask_short, ask_short_as_is, ask_with
from vl2.eval.public_data import Dataset, checked_rows, images_of, read_rows, stems_of, texts
from vl2.eval.score.text_rules import relaxed_accuracy
from vl2.eval.task import DataSource, Item, Protocol, Score, Task, mean_score


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder, split = source.folder(task), source.part(task)
    if any(folder.glob(f"{split}/{split}_*.json")):
        yield from _released(folder, split)
        return
    rows = read_rows(folder, stems_of(split, tsv={split: f"ChartQA_{split.upper()}"}), ("question", "answer"))
    for number, row in enumerate(rows):
        id = str(row.get("index", number))
        part = str(row.get("type", row.get("split", ""))).removeprefix("test_").removesuffix("_test")
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=texts(row["answer"])[0],
            part=part,
        )


def _released(folder: Path, split: str) -> Iterator[Item]:
    for path in find_files(folder, f"{split}/{split}_*.json"):
        part = path.stem.removeprefix(f"{split}_")
        for number, (_, row) in enumerate(checked_rows(list_rows(path))):
            image = folder / split / "png" / str(row["imgname"])
            yield Item(
                id=f"{part}-{number}", question=row["query"], images=(image,), gold=str(row["label"]), part=part,
                cluster=str(row["imgname"]),
            )  # fmt: skip


def score(item: Item, answer: str) -> Score:
    said = answer.rstrip(".").strip()
    return Score(value=relaxed_accuracy(said, item.gold), read=said)


def score_lmms(item: Item, answer: str) -> Score:
    return Score(value=relaxed_accuracy(answer, item.gold, is_stripped=False), read=answer)


ask_one_word = ask_with("\nAnswer the question with a single word.", is_stripped=False)
SAYS = "Relaxed accuracy: a number may be off by 5 %, a text must match without case"
TASK = Task(
    name="chartqa",
    title="ChartQA: questions about charts",
    layout="reads test-*.parquet (type, question, answer, image), ChartQA_TEST.tsv, or the release's test folder",
    folders=("chartqa", "ChartQA", "ChartQA Dataset"),
    read=read,
    split="test",
    protocols={
        "paper": Protocol(ask=ask_short, score=score, says=f"{SAYS}; a final full stop is dropped.",
                          max_new_tokens=128),
        "vlmevalkit": Protocol(ask=ask_short_as_is, score=score,
                               says=f"{SAYS}; the adapter drops a final full stop."),
        "lmms-eval": Protocol(ask=ask_one_word, score=score_lmms, says=f"{SAYS}.", max_new_tokens=16),
    },
    published_by="paper",
    published="chartqa",
    hub=Dataset("lmms-lab/ChartQA", ("data/{split}-*",)),
    metric=mean_score,
)  # fmt: skip
