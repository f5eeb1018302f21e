"""How far a run is, and what it has cost: one table, and the core-seconds of every stage."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.nano.plan import StagePlan

HOURS, PROGRESS = "hours.json", "progress.txt"
DRAWING = "drawing"
# What a stage is judged by, in this order: of the warm-up shares found, of the others losses by category.
FOUND = ("latin", "chinese", "sprite", "shape", "read_latin", "read_sprite", "named")
CATEGORIES = ("ocr", "table_chart", "vqa", "grounding", "caption", "text")
LAST = 20  # steps that a loss is the mean of


class CoreSeconds:
    """Counts what a process and its children have used, into a file that outlives a kill; a minute at most is lost."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._before = read_hours(folder).get(name, 0.0)
        self._ended = _of_children()
        self._running = 0.0

    def note(self, pid: int | None) -> None:
        """Write what has been used. `pid` is the running process; None: it has ended, and its own count is final."""
        if pid is not None:
            self._running = _of_tree(pid)
        used = self._running if pid is not None else _of_children() - self._ended
        hours = {**read_hours(self._folder), self._name: round(self._before + used, 1)}
        path = self._folder / HOURS
        path.with_suffix(".part").write_text(json.dumps(hours, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".part").replace(path)


def read_hours(folder: Path) -> dict[str, float]:
    """Return the core-seconds of each stage so far."""
    path = folder / HOURS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _of_tree(pid: int) -> float:
    """Return the core-seconds of a running process, of its children, and of those that they have waited for."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:  # it has ended, or this system keeps no such files: then the end counts
        return 0.0
    own = sum(map(int, after_name[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_of_tree(int(child)) for child in children)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a stage, one a step (of a warm-up, one every few)."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [line for line in lines if "evaluation" not in line]


def write_progress(folder: Path, plans: Sequence[StagePlan], current: str) -> str:
    """Return the table of all stages, and keep it in the folder."""
    text = progress_table(folder, plans, current)
    (folder / PROGRESS).write_text(text, encoding="utf-8")
    return text


def progress_table(folder: Path, plans: Sequence[StagePlan], current: str) -> str:
    """Return the table of all stages, with a mark at the current one."""
    hours = read_hours(folder)
    rows = [f"{'stage':12} {'step':>13} {'core-hours':>10}   so far"]
    rows.append(_row(DRAWING, "", hours, "", current))
    for plan in plans:
        lines = read_metrics(plan.folder)
        done = int(lines[-1]["step"]) if lines else 0
        said = "done" if plan.export.is_dir() else ""
        told = "  ".join(part for part in (said, summary(lines)) if part)
        rows.append(_row(plan.name, f"{done:,} / {plan.num_steps:,}", hours, told, current))
    rows.append(f"{'all':12} {'':>13} {sum(hours.values()) / 3600:10.2f}")
    return "\n".join(rows) + "\n"


def _row(name: str, step: str, hours: dict[str, float], told: str, current: str) -> str:
    mark = ">" if name == current else " "
    return f"{mark}{name:11} {step:>13} {hours.get(name, 0.0) / 3600:10.2f}   {told}".rstrip()


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """Return the last shares found of a warm-up, or the mean of the last losses by category."""
    if not lines:
        return ""
    if "class_loss" in lines[-1]:
        shares = (f"{name} {100 * lines[-1][name]:.0f}" for name in FOUND if name in lines[-1])
        return f"difficulty {lines[-1]['difficulty']:.2f}  % found: {', '.join(shares)}"
    told = []
    for name in (*CATEGORIES, "attention"):
        values = [value for line in lines[-LAST:] if (value := loss_of(line, name)) is not None]
        if values:
            told.append(f"{name} {sum(values) / len(values):.2f}")
    return "loss: " + ", ".join(told)


def loss_of(line: dict[str, Any], name: str) -> float | None:
    """Return the loss of a category in one step, or that of attention; None where there is none."""
    value = line.get("auxiliary_loss") if name == "attention" else line["loss_by_category"].get(name)
    return float(value) if value else None  # a stage without a loss of attention writes 0
