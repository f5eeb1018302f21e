"""Every task by its name."""

from __future__ import annotations

import difflib

from vl2.errors import UserError
from vl2.eval.task import Task
from vl2.eval.tasks import (
    ai2d,
    chartqa,
    detect_photos,
    docvqa,
    drawn_values,
    easy_vqa,
    emoji_names,
    mathvista,
    mmbench,
    mme,
    mmmu,
    mmstar,
    mmt_bench,
    nlvr,
    ocrbench,
    pope,
    realworldqa,
    records,
    refcoco,
    scene_objects,
    sroie,
    text_line,
    textvqa,
    wikitables,
)

PAPERS: tuple[Task, ...] = (
    docvqa.DOCVQA, chartqa.TASK, docvqa.INFOVQA, textvqa.TASK, ocrbench.TASK, mmstar.TASK, ai2d.TASK, mmmu.TASK,
    mme.TASK, mmbench.ENGLISH, mmbench.CHINESE_TASK, mmbench.V11, mmt_bench.TASK, realworldqa.TASK, mathvista.TASK,
    *refcoco.TASKS, pope.TASK,
)  # fmt: skip
OURS: tuple[Task, ...] = (
    easy_vqa.TASK, nlvr.TASK, sroie.LINES, sroie.FIELDS_TASK, text_line.ENGLISH, text_line.CHINESE,
    scene_objects.LOCATE, scene_objects.COUNT_TASK, scene_objects.PRESENCE_TASK, drawn_values.CHART, drawn_values.TABLE,
    emoji_names.ENGLISH, emoji_names.CHINESE, wikitables.TASK, detect_photos.TASK, records.TASK,
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in (*PAPERS, *OURS)}


def find_task(name: str) -> Task:
    """Return the task of a name; UserError names the nearest one."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]}?" if near else "`vl2 eval list` shows them"
    raise UserError(f"there is no task {name}: {hint}")
