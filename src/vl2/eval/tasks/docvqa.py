"""DocVQA and InfographicVQA: short answers about pages, scored by ANLS.

    *.parquet (lmms-eval's)    questionId, question, image, answers
    DocVQA_VAL.tsv, InfoVQA_VAL.tsv (VLMEvalKit's)    index, image, question, answer

The published figures are of the test splits, whose answers only the benchmark's server knows; what can be run here is
the validation split. The report evaluated InfographicVQA with up to 18 local tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vl2.eval.asking import ask_short
from vl2.eval.rows import images_of, read_rows, texts
from vl2.eval.score.anls import anls
from vl2.eval.task import Item, Mark, Task, Way, Where, mean_score


def read_named(tsv: str) -> Callable[[Task, Where], Iterator[Item]]:
    def read(task: Task, where: Where) -> Iterator[Item]:
        folder, split = where.folder(task), where.split or "validation"
        stems = (f"{split}*", f"data/{split}*", f"*/{split}*", tsv)
        for row in read_rows(folder, stems, ("question",)):
            id = str(row.get("questionId", row.get("index")))
            gold = row.get("answers", row.get("answer"))
            yield Item(
                id=id,
                question=row["question"],
                images=images_of(row.get("image", row.get("image_path")), folder, id),
                gold=texts(gold) if gold is not None else [],
                cluster=str(row.get("docId", "")),
            )

    return read


def mark(item: Item, answer: str) -> Mark:
    said = answer.rstrip(".")
    return Mark(score=anls(said, item.gold), read=said)


def mark_bare(item: Item, answer: str) -> Mark:
    return Mark(score=anls(answer, item.gold), read=answer)


def _task(name: str, title: str, tsv: str, folders: tuple[str, ...], max_tiles: int | None) -> Task:
    says = "ANLS, the best of the gold answers"
    return Task(
        name=name,
        title=title,
        layout=f"reads validation-*.parquet (questionId, question, image, answers) or {tsv}.tsv",
        folders=folders,
        read=read_named(tsv),
        ways={
            "paper": Way(messages=ask_short, mark=mark, max_new_tokens=128, max_tiles=max_tiles,
                         says=f"{says}; a final full stop is dropped."),
            "vlmevalkit": Way(messages=ask_short, mark=mark, says=f"{says}; the adapter drops a final full stop."),
            "lmms-eval": Way(messages=ask_short, mark=mark_bare, says=f"{says}.", max_new_tokens=32),
        },
        published_by="paper",
        published=name,
        metric=mean_score,
    )  # fmt: skip


DOCVQA = _task("docvqa", "DocVQA: short answers about pages", "DocVQA_VAL", ("docvqa", "DocVQA"), None)
INFOVQA = _task(
    "infovqa", "InfographicVQA: short answers about infographics", "InfoVQA_VAL",
    ("infovqa", "InfographicVQA", "InfoVQA"), 18,
)  # fmt: skip
