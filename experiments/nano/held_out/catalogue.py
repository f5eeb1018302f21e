"""All held-out tasks, with the mark that each must reach."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.nano.held_out import drawn_tasks, real_tasks
from vl2.eval.task import Task
from vl2.eval.tasks import chartqa, easy_vqa


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A task, its mark in percent, and where its files are."""

    task: Task
    mark: float | None = None
    needs: str = ""  # a folder within --real; "": what is fetched or drawn
    is_every_part: bool = False  # the mark is each part's
    is_open: bool = True  # an answer is free, so saying "cannot tell" would be possible and wrong


MARKS = {
    "lines_en_short": 92, "lines_en_long": 60, "lines_zh": 80, "locate": 97, "count": 92, "presence": 98,
    "chart_printed": 80, "chart_unprinted": 30, "tables": 80, "emoji_en": 40, "emoji_zh": 40,
}  # fmt: skip
ENTRIES = (
    *(
        Entry(
            task=task,
            mark=MARKS.get(task.name),
            is_every_part=task.name == "chart_printed",
            is_open=task.name not in ("presence", "locate"),
        )
        for task in drawn_tasks.TASKS
    ),
    Entry(task=easy_vqa.TASK, mark=99, is_open=False),
    Entry(task=real_tasks.NLVR, mark=60, needs="nlvr", is_open=False),
    Entry(task=real_tasks.RECEIPT_LINES, mark=60, needs="sroie"),
    Entry(task=real_tasks.RECEIPT_FIELDS, mark=40, needs="sroie"),
    Entry(task=real_tasks.DEMO, mark=85, is_open=False),
    Entry(task=chartqa.TASK, mark=10, needs="chartqa"),
    Entry(task=real_tasks.PHOTOS, mark=50, is_open=False),
)
