"""POPE: whether an object is in a photo, for random, popular and adversarial objects. Not in the paper's tables.

test-*.parquet (lmms-eval's)    id, question, answer, image, image_source, category
POPE.tsv (VLMEvalKit's)    index, category, question, answer, image
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vl2.eval.protocols import ask, ask_short
from vl2.eval.public_data import Dataset, images_of, read_rows, stems_of
from vl2.eval.score.yes_no import pope_scores, vlmevalkit_yes_no
from vl2.eval.task import DataSource, Item, Protocol, Result, Score, Task


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder = source.folder(task)
    stems = stems_of(source.part(task), tsv={"test": "POPE"})
    rows = read_rows(folder, stems, ("question", "answer"))
    for number, row in enumerate(rows):
        id = str(row.get("index", row.get("id", number)))
        yield Item(
            id=f"{row.get('category', '')}-{id}",
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=str(row["answer"]).strip().lower(),
            part=str(row.get("category", "")),
            cluster=str(row.get("image_source", "")),
        )


def score(item: Item, answer: str) -> Score:
    said = vlmevalkit_yes_no(answer)
    return Score(value=float(said == item.gold), read=said)


def score_lmms(item: Item, answer: str) -> Score:
    said = answer.lower().strip()
    return Score(value=float(said == item.gold), read=said)


def metric(results: Sequence[Result]) -> dict[str, float]:
    """Return VLMEvalKit's figures: F1 first, then the other figures and the F1 of each category.

    A question with several categories ("popular,random") counts once for each, also in the overall figures.
    """
    readings = [(part, (r.read, r.gold)) for r in results for part in r.part.split(",")]
    return _by_part(readings, unclear_is_miss=True)


def metric_lmms(results: Sequence[Result]) -> dict[str, float]:
    """Return lmms-eval's figures, F1 first. It does not report categories; they are computed by its rule."""
    return _by_part([(r.part, (r.read, r.gold)) for r in results], unclear_is_miss=False)


def _by_part(readings: Sequence[tuple[str, tuple[str, str]]], *, unclear_is_miss: bool) -> dict[str, float]:
    figures = pope_scores([pair for _, pair in readings], unclear_is_miss=unclear_is_miss)
    parts = sorted({part for part, _ in readings} - {""})
    for part in parts if len(parts) > 1 else []:
        own = [pair for name, pair in readings if name == part]
        figures[part] = pope_scores(own, unclear_is_miss=unclear_is_miss)["f1"]
    return figures


SAYS = "Exactly one of the words yes and no; F1, where an unclear answer counts as no"
TASK = Task(
    name="pope",
    title="POPE: is an object in a photo",
    layout="reads test-*.parquet (id, question, answer, image, category) or POPE.tsv",
    folders=("pope", "POPE"),
    read=read,
    split="test",
    protocols={
        "paper": Protocol(ask=ask_short, score=score, says=f"{SAYS}.", max_new_tokens=16),
        "vlmevalkit": Protocol(ask=ask, score=score, says=f"{SAYS}."),
        "lmms-eval": Protocol(ask=ask_short, score=score_lmms, metric=metric_lmms, max_new_tokens=128,
                              says="The whole answer must be yes or no; F1, whose recall leaves out unclear answers."),
    },
    metric=metric,
    hub=Dataset("lmms-lab/POPE", ("data/{split}-*",)),
)  # fmt: skip
