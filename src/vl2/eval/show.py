"""What `vl2 eval show` prints: how a task asks, and how an answer is read and scored."""

from __future__ import annotations

from vl2.errors import UserError
from vl2.eval.run import limited, prompt_text
from vl2.eval.task import Item, Task, Way, Where


def describe(task: Task, where: Where, *, only: str | None = None) -> str:
    """Return the description of a task; with data, the prompt of its first item, else of a made-up one."""
    try:
        item = next(limited(task, where, 1), None)
    except UserError:
        if where.data is not None:
            raise
        item = None
    example = item or EXAMPLE
    lines = [f"{task.name}: {task.title}", f"data: {task.layout}"]
    if task.published_by is not None:
        lines.append(f"published figure: protocol {task.published_by}")
    for name, way in task.ways.items():
        if only in (None, name):
            lines += ["", f"== {name}: at most {way.max_new_tokens} tokens, greedy{_tiles(way)}"]
            lines += [f"   {way.says}{_judge(way)}", ""]
            lines += [f"   | {line}" for line in prompt_text(way.messages(example)).splitlines()]
    if item is None:
        lines += ["", "The question above is made up: give --data for a real one."]
    else:
        lines += ["", f"gold: {item.gold}"]
    return "\n".join(lines)


def _tiles(way: Way) -> str:
    return f", up to {way.max_tiles} tiles" if way.max_tiles is not None else ""


def _judge(way: Way) -> str:
    return " Answers that the rules cannot read go to a judge, if there is one." if way.judge is not None else ""


EXAMPLE = Item(
    id="example",
    question="QUESTION?",
    images=(b"",),
    gold=["GOLD"],
    options=("OPTION ONE", "OPTION TWO"),
    notes={"size": [640, 480]},
)
