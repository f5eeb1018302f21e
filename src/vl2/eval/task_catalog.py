"""The catalog of tasks by name, and the description of a task for `vl2 eval show`."""

from __future__ import annotations

import difflib
import io

from PIL import Image

from vl2.errors import UserError
from vl2.eval.choose_items import first_item
from vl2.eval.run_task import prompt_text
from vl2.eval.task import DataSource, Item, Protocol, Task
from vl2.eval.tasks import (
    ai2d,
    chartqa,
    chartqapro,
    countbenchqa,
    detect_photos,
    documents,
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
    ocrbench_v2,
    olmocr_bench,
    omnidocbench,
    pope,
    realworldqa,
    records,
    refcoco,
    scene_objects,
    screenspot,
    sroie,
    text_line,
    textvqa,
    wikitables,
)
from vl2.process.conversation import user_turn

PAPERS: tuple[Task, ...] = (
    docvqa.DOCVQA, chartqa.TASK, docvqa.INFOVQA, textvqa.TASK, ocrbench.TASK, mmstar.TASK, ai2d.TASK, mmmu.TASK,
    mme.TASK, mmbench.ENGLISH, mmbench.CHINESE_TASK, mmbench.V11, mmt_bench.TASK, realworldqa.TASK, mathvista.TASK,
    *refcoco.TASKS, pope.TASK,
)  # fmt: skip
OTHERS: tuple[Task, ...] = (  # public benchmarks that are not in the paper
    omnidocbench.TASK, olmocr_bench.TASK, ocrbench_v2.TASK, chartqapro.TASK, countbenchqa.TASK, *screenspot.TASKS,
)  # fmt: skip
OURS: tuple[Task, ...] = (
    easy_vqa.TASK, nlvr.TASK, sroie.LINES, sroie.FIELDS_TASK, text_line.ENGLISH, text_line.CHINESE,
    scene_objects.LOCATE, scene_objects.COUNT_TASK, scene_objects.PRESENCE_TASK, drawn_values.CHART, drawn_values.TABLE,
    emoji_names.ENGLISH, emoji_names.CHINESE, wikitables.TASK, detect_photos.TASK, documents.ENGLISH,
    documents.CHINESE, records.TASK,
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in (*PAPERS, *OTHERS, *OURS)}


def find_task(name: str) -> Task:
    """Return a task by name. Raise UserError with the nearest name if it is unknown."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]}?" if near else "`vl2 eval list` shows them"
    raise UserError(f"there is no task {name}: {hint}")


def describe(task: Task, source: DataSource, *, only: str | None = None, answer: str | None = None) -> str:
    """Return the description of a task, with the prompt of its first item, or of a made-up item without data.

    `only` selects one protocol. An `answer` is scored by every protocol shown; this needs data.
    """
    try:
        item = first_item(task, source)
    except UserError:
        if source.data is not None:
            raise
        item = None
    if item is None and answer is not None:
        raise UserError("an answer is scored against a gold answer: give the task's --data")
    example = item or example_item()
    lines = [f"{task.name}: {task.title}", f"data: {task.layout}"]
    if task.hub is not None:
        lines.append(f"hub: --data hub takes {task.hub.name}")
    if task.published_by is not None:
        split = f", split {task.published_split}" if task.published_split else ""
        lines.append(f"published figure: protocol {task.published_by}{split}")
    for name, protocol in task.protocols.items():
        if only in (None, name):
            lines += ["", f"== {name}: at most {protocol.max_new_tokens} tokens, greedy{_tiles(protocol)}"]
            lines += [f"   {protocol.says}{_judge(protocol)}", ""]
            lines += [f"   | {line}" for line in prompt_text(protocol.ask(example)).splitlines()]
            if answer is not None:
                lines += ["", f"   {answer!r} {_read(protocol, example, answer)}"]
    if item is None:
        lines += ["", "The question above is made up: give --data for a real one."]
    else:
        lines += ["", f"gold: {item.gold}"]
    return "\n".join(lines)


def _tiles(protocol: Protocol) -> str:
    return f", up to {protocol.max_tiles} tiles" if protocol.max_tiles is not None else ""


def _judge(protocol: Protocol) -> str:
    return " Answers that the rules cannot read go to a judge, if there is one." if protocol.judge is not None else ""


def _read(protocol: Protocol, item: Item, answer: str) -> str:
    score = protocol.score(item, answer)
    if score.is_undecided:
        return f"cannot be read by the rules: a judge decides, without one the score is {score.value:g}"
    return f"is read as {score.read!r}, score {score.value:g}"


def example_item() -> Item:
    """Return a made-up item from which every task can make its prompt."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(picture, "PNG")
    return Item(
        id="example",
        question="QUESTION?",
        images=(picture.getvalue(),),
        gold=["GOLD"],
        options=("OPTION ONE", "OPTION TWO"),
        notes={"size": [64, 48], "turns": [user_turn("QUESTION?")]},
    )
