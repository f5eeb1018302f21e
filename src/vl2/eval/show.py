"""What `vl2 eval show` prints: how a task asks, and how an answer is read and scored."""

from __future__ import annotations

import io

from PIL import Image

from vl2.errors import UserError
from vl2.eval.answering import prompt_text
from vl2.eval.run import first_item
from vl2.eval.task import Item, Task, Way, Where


def describe(task: Task, where: Where, *, only: str | None = None, answer: str | None = None) -> str:
    """Return the description of a task; with data, the prompt of its first item, else of a made-up one.

    `answer` is read and scored under every protocol.
    """
    try:
        item = first_item(task, where)
    except UserError:
        if where.data is not None:
            raise
        item = None
    if item is None and answer is not None:
        raise UserError("an answer is scored against a gold answer: give the task's --data")
    example = item or made_up()
    lines = [f"{task.name}: {task.title}", f"data: {task.layout}"]
    if task.hub is not None:
        lines.append(f"hub: --data hub takes {task.hub.name}")
    if task.published_by is not None:
        split = f", split {task.published_split}" if task.published_split else ""
        lines.append(f"published figure: protocol {task.published_by}{split}")
    for name, way in task.ways.items():
        if only in (None, name):
            lines += ["", f"== {name}: at most {way.max_new_tokens} tokens, greedy{_tiles(way)}"]
            lines += [f"   {way.says}{_judge(way)}", ""]
            lines += [f"   | {line}" for line in prompt_text(way.messages(example)).splitlines()]
            if answer is not None:
                lines += ["", f"   {answer!r} {_read(way, example, answer)}"]
    if item is None:
        lines += ["", "The question above is made up: give --data for a real one."]
    else:
        lines += ["", f"gold: {item.gold}"]
    return "\n".join(lines)


def _tiles(way: Way) -> str:
    return f", up to {way.max_tiles} tiles" if way.max_tiles is not None else ""


def _judge(way: Way) -> str:
    return " Answers that the rules cannot read go to a judge, if there is one." if way.judge is not None else ""


def _read(way: Way, item: Item, answer: str) -> str:
    mark = way.mark(item, answer)
    if mark.is_undecided:
        return f"cannot be read by the rules: a judge decides, without one the score is {mark.score:g}"
    return f"is read as {mark.read!r}, score {mark.score:g}"


def made_up() -> Item:
    """Return an item that every task's prompt can be made of."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(picture, "PNG")
    return Item(
        id="example",
        question="QUESTION?",
        images=(picture.getvalue(),),
        gold=["GOLD"],
        options=("OPTION ONE", "OPTION TWO"),
        notes={"size": [64, 48], "turns": [{"role": "user", "content": [{"type": "text", "text": "QUESTION?"}]}]},
    )
