"""easy-VQA: simple questions about one colored shape on a plain background; the official test split (9,673 questions).

    test/questions.json    [[question, answer, image id], ...]
    test/images/0.png

Source: the PyPI package easy-vqa; `vl2 data fetch` creates this layout.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.json_stream import list_rows
from vl2.data.raw_files import find_file
from vl2.errors import UserError
from vl2.eval.protocols import ask_short, score_exact
from vl2.eval.public_data import checked_rows
from vl2.eval.task import DataSource, Item, Protocol, Task, mean_score


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder = source.folder(task)
    file = find_file(folder, f"{source.split or 'test'}/questions.json", f"*/{source.split or 'test'}/questions.json")
    for number, (place, row) in enumerate(checked_rows(list_rows(file))):
        if not isinstance(row, list) or len(row) != 3:
            raise UserError(f"{place} must be [question, answer, image], got {row!r:.60}")
        question, answer, image = row
        path = file.parent / "images" / f"{int(image)}.png"
        yield Item(
            id=f"easy-vqa-{number}",
            question=question,
            images=(path,),
            gold=[answer],
            part=_part(answer),
            cluster=str(image),
        )


def _part(answer: str) -> str:
    return "yes or no" if answer in ("yes", "no") else "shape or colour"


TASK = Task(
    name="easy_vqa",
    title="Questions about one colored shape (official test split)",
    layout="reads test/questions.json and test/images/N.png of the easy-vqa package",
    folders=("easy_vqa", "easy-vqa"),
    read=read,
    protocols={"vl2": Protocol(ask=ask_short, score=score_exact, says="Exact match without case.", max_new_tokens=16)},
    metric=mean_score,
)
