"""MME: two yes-or-no questions about each image, in fourteen categories; at most 2,800 points.

test-*.parquet (lmms-eval's)    question_id, image, question, answer, category
MME.tsv (VLMEvalKit's)    index, category, image_path, question, answer, image
CATEGORY/images/, CATEGORY/questions_answers_YN/*.txt, or both in CATEGORY/ (the release's)    question TAB answer
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vl2.data.raw_files import IMAGE_ENDINGS, read_text
from vl2.datasets.question_answers import SHORT_ANSWER
from vl2.errors import UserError
from vl2.eval.protocols import ask
from vl2.eval.public_data import Dataset, Row, images_of, read_rows, stems_of
from vl2.eval.score.yes_no import lmms_eval_yes_no, mme_scores, vlmevalkit_yes_no
from vl2.eval.task import DataSource, Item, Protocol, Result, Score, Task
from vl2.process.conversation import Turn, user_turn

YES_OR_NO = " Please answer yes or no."


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder = source.folder(task)
    split = source.part(task)
    if split == "test" and any(folder.glob("existence/**/*.txt")):
        rows = _released(folder)
    else:
        rows = read_rows(folder, stems_of(split, tsv={"test": "MME"}), ("question", "answer", "category"))
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


def _released(folder: Path) -> Iterator[Row]:
    """Yield the rows of the release, which has one file of two questions per image."""
    for path in sorted(folder.glob("*/*.txt")) + sorted(folder.glob("*/questions_answers_YN/*.txt")):
        category = path.relative_to(folder).parts[0]
        places = [folder / category / "images", path.parent]
        pictures = [p for place in places for p in sorted(place.glob(f"{path.stem}.*")) if p.suffix in IMAGE_ENDINGS]
        if not pictures:
            raise UserError(f"{path} has no image beside it or in {category}/images")
        for line in read_text(path).splitlines():
            question, tab, answer = line.strip().partition("\t")
            if tab:
                name = str(pictures[0].relative_to(folder))
                yield {"category": category, "image_path": name, "image": name, "question": question, "answer": answer}


def ask_lmms(item: Item) -> list[Turn]:
    return [user_turn(f"{item.question.strip().replace(YES_OR_NO, '')}\n{SHORT_ANSWER}", item.images)]


def score(item: Item, answer: str) -> Score:
    said = vlmevalkit_yes_no(answer)
    return Score(value=float(said == item.gold), read=said)


def score_lmms(item: Item, answer: str) -> Score:
    said = lmms_eval_yes_no(answer)
    return Score(value=float(said == item.gold), read=said)


def metric(results: Sequence[Result]) -> dict[str, float]:
    return mme_scores((r.part, r.cluster, r.score) for r in results)


SAYS = "Accuracy over questions plus accuracy over images with both right, summed over categories; yes or no"
TASK = Task(
    name="mme",
    title="MME: yes-or-no questions on perception and cognition",
    layout="reads test-*.parquet (question_id, image, question, answer, category), MME.tsv or the release",
    folders=("mme", "MME"),
    read=read,
    split="test",
    protocols={
        "paper": Protocol(ask=ask, score=score, says=f"{SAYS} as a word.", max_new_tokens=16),
        "vlmevalkit": Protocol(ask=ask, score=score, says=f"{SAYS} as a word."),
        "lmms-eval": Protocol(ask=ask_lmms, score=score_lmms, says=f"{SAYS} by the first four characters.",
                              max_new_tokens=16),
    },
    published_by="vlmevalkit",
    published="mme",
    hub=Dataset("lmms-lab/MME", ("data/{split}-*",)),
    metric=metric,
    keeps_clusters=True,
    unit="of 2800",
)  # fmt: skip
