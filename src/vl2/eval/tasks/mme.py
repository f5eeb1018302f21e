"""MME: two yes-or-no questions about each picture, in fourteen categories; at most 2,800 points.

test-*.parquet (lmms-eval's)    question_id, image, question, answer, category
MME.tsv (VLMEvalKit's)    index, category, image_path, question, answer, image
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vl2.data.convert.conversation import SHORT_ANSWER
from vl2.eval.asking import ask
from vl2.eval.rows import images_of, read_rows
from vl2.eval.score.mme import mme_scores
from vl2.eval.score.yes_no import lmms_eval_yes_no, vlmevalkit_yes_no
from vl2.eval.task import Item, Mark, Result, Task, Way, Where
from vl2.infer.prompts import Messages, user_message

YES_OR_NO = " Please answer yes or no."


def read(task: Task, where: Where) -> Iterator[Item]:
    folder = where.folder(task)
    rows = read_rows(folder, (f"{where.split or 'test'}*", "data/test*", "MME"), ("question", "answer", "category"))
    for number, row in enumerate(rows):
        picture = str(row.get("image_path", row.get("question_id")))
        yield Item(
            id=str(row.get("index", number)),
            question=row["question"],
            images=images_of(row["image"], folder, picture),
            gold=str(row["answer"]).strip().lower(),
            part=row["category"],
            cluster=f"{row['category']}/{picture}",
        )


def ask_lmms(item: Item) -> Messages:
    return [user_message(f"{item.question.strip().replace(YES_OR_NO, '')}\n{SHORT_ANSWER}", item.images)]


def mark(item: Item, answer: str) -> Mark:
    said = vlmevalkit_yes_no(answer)
    return Mark(score=float(said == item.gold), read=said)


def mark_lmms(item: Item, answer: str) -> Mark:
    said = lmms_eval_yes_no(answer)
    return Mark(score=float(said == item.gold), read=said)


def metric(results: Sequence[Result]) -> dict[str, float]:
    return mme_scores((r.part, r.cluster, r.score) for r in results)


SAYS = "Accuracy over questions plus accuracy over pictures with both right, summed over categories; yes or no"
TASK = Task(
    name="mme",
    title="MME: yes-or-no questions on perception and cognition",
    layout="reads test-*.parquet (question_id, image, question, answer, category) or MME.tsv",
    folders=("mme", "MME"),
    read=read,
    ways={
        "paper": Way(messages=ask, mark=mark, says=f"{SAYS} as a word.", max_new_tokens=16),
        "vlmevalkit": Way(messages=ask, mark=mark, says=f"{SAYS} as a word."),
        "lmms-eval": Way(messages=ask_lmms, mark=mark_lmms, says=f"{SAYS} by the first four characters.",
                         max_new_tokens=16),
    },
    published_by="vlmevalkit",
    published="mme",
    metric=metric,
    unit="of 2800",
)  # fmt: skip
