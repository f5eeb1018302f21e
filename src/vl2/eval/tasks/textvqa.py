"""TextVQA: questions about text in photos, ten human answers each, scored by VQA accuracy.

validation-*.parquet (lmms-eval's)    question_id, question, answers, image
TextVQA_VAL.tsv (VLMEvalKit's)    index, image, question, answer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vl2.eval.asking import ask_short
from vl2.eval.rows import images_of, read_rows, texts
from vl2.eval.score.vqa import Normalise, lmms_eval_form, vlmevalkit_form, vqa_accuracy
from vl2.eval.task import Item, Mark, Task, Way, Where, mean_score


def read(task: Task, where: Where) -> Iterator[Item]:
    folder, split = where.folder(task), where.split or "validation"
    for row in read_rows(folder, (f"{split}*", f"data/{split}*", "TextVQA_VAL"), ("question",)):
        id = str(row.get("question_id", row.get("index")))
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=texts(row.get("answers", row.get("answer"))),
            cluster=str(row.get("image_id", "")),
        )


def mark_by(normalise: Normalise) -> Callable[[Item, str], Mark]:
    def mark(item: Item, answer: str) -> Mark:
        said = answer.rstrip(".")
        return Mark(score=vqa_accuracy(said, item.gold, normalise), read=normalise(said))

    return mark


SAYS = "VQA accuracy over ten answers, each left out in turn; normalised as by"
TASK = Task(
    name="textvqa",
    title="TextVQA: questions about text in photos",
    layout="reads validation-*.parquet (question_id, question, answers, image) or TextVQA_VAL.tsv",
    folders=("textvqa", "TextVQA"),
    read=read,
    ways={
        "paper": Way(messages=ask_short, mark=mark_by(vlmevalkit_form), says=f"{SAYS} VLMEvalKit.", max_new_tokens=64),
        "vlmevalkit": Way(messages=ask_short, mark=mark_by(vlmevalkit_form), says=f"{SAYS} VLMEvalKit."),
        "lmms-eval": Way(
            messages=ask_short, mark=mark_by(lmms_eval_form), says=f"{SAYS} lmms-eval.", max_new_tokens=32
        ),
    },
    published_by="paper",
    published="textvqa",
    metric=mean_score,
)
