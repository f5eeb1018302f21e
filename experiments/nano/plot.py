"""One picture of a run: what the warm-up recognizes, and the losses of the stages, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.nano.plan import StagePlan
from experiments.nano.progress import CATEGORIES, FOUND, loss_of, read_metrics

WINDOW = 20  # steps that a point is the mean of
PICTURE = "nano.png"


def draw_run(folder: Path, plans: Sequence[StagePlan]) -> None:
    """Draw nano.png from the metrics of the stages that have begun."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    start = 0
    for plan in plans:
        lines = read_metrics(plan.folder)
        if not lines:
            continue
        if "class_loss" in lines[-1]:
            _draw_found(left, lines)
        else:
            start = _draw_losses(right, lines, plan.name, start)
    left.set(title="Reading: patches, and things of visual tokens, found", xlabel="step", ylabel="%", ylim=(0, 100))
    right.set(title="Losses of the other stages", xlabel="step", ylabel="nats per token", ylim=(0, 6))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        if once:
            axes.legend(
                once.values(),
                once.keys(),
                fontsize=8,
                ncols=4,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.14),
                frameon=False,
            )
    figure.savefig(folder / PICTURE, dpi=120)


def _draw_found(axes: Axes, lines: list[dict[str, Any]]) -> None:
    for number, name in enumerate(FOUND):
        points = [(line["step"], 100 * line[name]) for line in lines if name in line]
        if not points:
            continue
        style = ":" if number < 4 else "-"
        axes.plot(
            *zip(*points, strict=True), style, color=f"C{number % 4 if number < 6 else 6}", label=name.replace("_", " ")
        )


def _draw_losses(axes: Axes, lines: list[dict[str, Any]], stage: str, start: int) -> int:
    """Draw the losses of a stage behind the one before; return where it ends."""
    for number, name in enumerate((*CATEGORIES, "attention")):
        points = []
        for first in range(0, len(lines), WINDOW):
            window = lines[first : first + WINDOW]
            values = [value for line in window if (value := loss_of(line, name)) is not None]
            if values:
                points.append((start + window[-1]["step"], sum(values) / len(values)))
        if points:
            style = "--" if name == "attention" else "-"
            axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=name.replace("_", " and "))
    end = start + int(lines[-1]["step"])
    axes.axvline(end, color="grey", linewidth=0.8)
    axes.annotate(stage, (end, 0.97), (-3, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                  rotation=90, ha="right", va="top", fontsize=8, color="grey")  # fmt: skip
    return end
