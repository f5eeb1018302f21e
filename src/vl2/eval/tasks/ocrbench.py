"""OCRBench: 1,000 questions about text in images, with one point for each answer that contains a gold text.

test-*.parquet (the release's)    dataset, question, question_type, answer, image
OCRBench.tsv (VLMEvalKit's)    index, image, question, answer, category
OCRBench.json, OCRBench_Images/ (the release's)    dataset_name, type, id, image_path, question, answers
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vl2.eval.protocols import ask
from vl2.eval.public_data import Dataset, Row, images_of, read_rows, released_rows, stems_of, texts
from vl2.eval.score.text_rules import FORMULAS, ocrbench_point
from vl2.eval.task import DataSource, Item, Protocol, Result, Score, Task, mean_score

QUESTIONS = 1000


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder = source.folder(task)
    split = source.part(task)
    if split == "test" and (folder / "OCRBench.json").is_file():
        rows = _released(folder)
    else:
        rows = read_rows(folder, stems_of(split, tsv={"test": "OCRBench"}), ("question", "answer"))
    for number, row in enumerate(rows):
        id = str(row.get("index", number))
        kind = str(row.get("question_type", row.get("category", "")))
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=texts(row["answer"]),
            part=FORMULAS if row.get("dataset") == "HME100k" else kind,
        )


def _released(folder: Path) -> Iterator[Row]:
    for row in released_rows(folder, "OCRBench.json"):
        yield {
            "dataset": row["dataset_name"],
            "question_type": row["type"],
            "question": row["question"],
            "answer": row["answers"],
            "image": f"OCRBench_Images/{row['image_path']}",
        }


def score(item: Item, answer: str) -> Score:
    return Score(value=ocrbench_point(answer.rstrip("."), item.gold, item.part), read=answer.rstrip("."))


def score_lmms(item: Item, answer: str) -> Score:
    return Score(value=ocrbench_point(answer, item.gold, item.part, folds_width=True), read=answer)


def points(results: Sequence[Result]) -> dict[str, float]:
    """Return points out of 1,000, scaled if fewer questions were asked."""
    return {name: figure / 100 * QUESTIONS for name, figure in mean_score(results).items()}


SAYS = "One point if the answer contains a gold text"
TASK = Task(
    name="ocrbench",
    title="OCRBench: reading text of ten kinds",
    layout="reads test-*.parquet (dataset, question, question_type, answer, image), OCRBench.tsv or the release",
    folders=("ocrbench", "OCRBench"),
    read=read,
    split="test",
    protocols={
        "paper": Protocol(ask=ask, score=score, says=f"{SAYS}.", max_new_tokens=128),
        "vlmevalkit": Protocol(ask=ask, score=score, says=f"{SAYS}."),
        "lmms-eval": Protocol(
            ask=ask, score=score_lmms, says=f"{SAYS}; full-width ASCII is folded.", max_new_tokens=128
        ),
    },
    published_by="paper",
    published="ocrbench",
    hub=Dataset("echo840/OCRBench", ("data/{split}-*",)),
    metric=points,
    unit="of 1000",
)
