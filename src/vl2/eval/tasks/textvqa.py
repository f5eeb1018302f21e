"""TextVQA: questions about text in photos, ten human answers each, scored by VQA accuracy.

validation-*.parquet (lmms-eval's)    question_id, question, answers, image
TextVQA_VAL.tsv (VLMEvalKit's)    index, image, question, answer
TextVQA_0.5.1_val.json, train_images/IMAGE_ID.jpg (the release's; test_images for test)    question_id, question, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vl2.datasets.question_answers import SHORT_ANSWER
from vl2.eval.protocols import ask_short, ask_short_as_is
from vl2.eval.public_data import Dataset, Row, golds_of, images_of, read_rows, released_rows, stems_of
from vl2.eval.score.text_rules import Normalize, lmms_eval_form, vlmevalkit_form, vqa_accuracy
from vl2.eval.task import DataSource, Item, Protocol, Score, Task, mean_score
from vl2.process.conversation import Turn, user_turn


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder, split = source.folder(task), source.part(task)
    pattern = f"TextVQA_[0-9]*_{'val' if split == 'validation' else split}.json"
    if any(folder.glob(pattern)):
        # The images of the validation split are in the folder of the training split.
        place = "test_images" if split == "test" else "train_images"
        named = released_rows(folder, pattern, "data")
        rows: Iterator[Row] = ({**row, "image": f"{place}/{row['image_id']}.jpg"} for row in named)
    else:
        rows = read_rows(folder, stems_of(split, tsv={"validation": "TextVQA_VAL"}), ("question",))
    for row in rows:
        id = str(row.get("question_id", row.get("index")))
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(row["image"], folder, id),
            gold=golds_of(row.get("answers", row.get("answer"))),
            cluster=str(row.get("image_id", "")),
        )


def ask_lmms(item: Item) -> list[Turn]:
    """Ask as lmms-eval does: it capitalizes the question, which lower-cases all letters after the first."""
    return [user_turn(f"{item.question.capitalize()}\n{SHORT_ANSWER}", item.images)]


def score_by(normalize: Normalize) -> Callable[[Item, str], Score]:
    def score(item: Item, answer: str) -> Score:
        said = answer.rstrip(".")
        return Score(value=vqa_accuracy(said, item.gold, normalize), read=normalize(said))

    return score


SAYS = "VQA accuracy over ten answers, each left out in turn; normalized as by"
TASK = Task(
    name="textvqa",
    title="TextVQA: questions about text in photos",
    layout="reads validation-*.parquet (question_id, question, answers, image), TextVQA_VAL.tsv or the release",
    folders=("textvqa", "TextVQA"),
    read=read,
    split="validation",
    protocols={
        "paper": Protocol(
            ask=ask_short, score=score_by(vlmevalkit_form), says=f"{SAYS} VLMEvalKit.", max_new_tokens=64
        ),
        "vlmevalkit": Protocol(ask=ask_short_as_is, score=score_by(vlmevalkit_form), says=f"{SAYS} VLMEvalKit."),
        "lmms-eval": Protocol(ask=ask_lmms, score=score_by(lmms_eval_form), says=f"{SAYS} lmms-eval."),
    },
    published_by="paper",
    published="textvqa",
    hub=Dataset("lmms-lab/textvqa", ("data/{split}-*",)),
    metric=mean_score,
)
