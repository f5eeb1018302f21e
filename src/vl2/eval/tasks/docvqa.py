"""DocVQA and InfographicVQA: short answers about pages, scored by ANLS.

    *.parquet (lmms-eval's)    questionId, question, image, answers
    DocVQA_VAL.tsv, InfoVQA_VAL.tsv (VLMEvalKit's)    index, image, question, answer
    val_v1.0*.json and documents/, infographicsVQA_val_v1.0*.json and infographicsvqa_images/ (the release's)

The published figures are of the test splits, whose answers are withheld on the benchmark's server, so these tasks score
the validation split. The report evaluated InfographicVQA with up to 18 local tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vl2.eval.protocols import ask_short, ask_short_as_is
from vl2.eval.public_data import Dataset, Row, golds_of, images_of, read_rows, released_rows, stems_of
from vl2.eval.score.text_rules import anls
from vl2.eval.task import REFUSED, DataSource, Item, Protocol, Result, Score, Task, mean_score

BEFORE = "by raw lengths (VLMEvalKit until August 2026, lmms-eval)"
RELEASED = {"validation": "val", "test": "test"}  # split: its name in the release's files


def read_named(tsv: str, hub_folder: str, released: str) -> Callable[[Task, DataSource], Iterator[Item]]:
    def read(task: Task, source: DataSource) -> Iterator[Item]:
        folder, split = source.folder(task), source.part(task)
        short = RELEASED.get(split, split)
        pattern = released.format(split=short)
        if any(folder.glob(pattern)):
            rows = released_rows(folder, pattern, "data")
        else:
            stems = stems_of(split, tsv={split: f"{tsv}_{short.upper()}"}, folders=("", "data/", f"{hub_folder}/"))
            rows = read_rows(folder, stems, ("question",))
        for row in rows:
            id = str(row.get("questionId", row.get("index")))
            yield Item(
                id=id,
                question=row["question"],
                images=_images(row, folder, id),
                gold=golds_of(row.get("answers", row.get("answer"))),
                cluster=str(row.get("docId", row.get("image_local_name", ""))),
            )

    return read


def _images(row: Row, folder: Path, id: str) -> tuple[object, ...]:
    """Return the image of the page; the release gives a file name, relative to one of its folders."""
    name = row.get("image_local_name", row.get("image", row.get("image_path")))
    if "image_local_name" in row:
        return images_of(name, folder / "infographicsvqa_images", id)
    return images_of(name, folder, id)


def score(item: Item, answer: str) -> Score:
    said = answer.rstrip(".")
    return Score(value=anls(said, item.gold), read=said)


def score_cleaned(item: Item, answer: str) -> Score:
    said = answer.rstrip(".")
    return Score(value=anls(said, item.gold, divides_cleaned=True), read=said)


def both_lengths(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean ANLS as VLMEvalKit computes it now, and the one it computed before, divided by raw lengths."""
    before = [anls(result.read, result.gold) if result.finish_reason != REFUSED else 0.0 for result in results]
    return {**mean_score(results), BEFORE: 100 * sum(before) / len(before) if before else 0.0}


def score_bare(item: Item, answer: str) -> Score:
    return Score(value=anls(answer, item.gold), read=answer)


def _task(
    name: str, title: str, tsv: str, folders: tuple[str, ...], hub_folder: str, released: str, max_tiles: int | None
) -> Task:
    says = "ANLS, the best of the gold answers"
    return Task(
        name=name,
        title=title,
        layout=f"reads validation-*.parquet (questionId, question, image, answers), {tsv}_VAL.tsv or the release",
        folders=folders,
        hub=Dataset("lmms-lab/DocVQA", (f"{hub_folder}/{{split}}-*",)),
        read=read_named(tsv, hub_folder, released),
        split="validation",
        protocols={
            "paper": Protocol(ask=ask_short, score=score, max_new_tokens=128, max_tiles=max_tiles,
                              says=f"{says}; a final full stop is dropped."),
            "vlmevalkit": Protocol(ask=ask_short_as_is, score=score_cleaned, metric=both_lengths,
                                   says=f"{says}, by cleaned lengths; the adapter drops a final full stop."),
            "lmms-eval": Protocol(ask=ask_short_as_is, score=score_bare, says=f"{says}.", max_new_tokens=32),
        },
        published_by="paper",
        published=name,
        published_split="test",
        metric=mean_score,
        is_mean=True,
    )  # fmt: skip


DOCVQA = _task(
    "docvqa", "DocVQA: short answers about pages", "DocVQA", ("docvqa", "DocVQA"), "DocVQA", "{split}_v1.0*.json", None
)
INFOVQA = _task(
    "infovqa", "InfographicVQA: short answers about infographics", "InfoVQA", ("infovqa", "InfographicVQA", "InfoVQA"),
    "InfographicVQA", "info*_{split}_v1.0*.json", 18,
)  # fmt: skip
