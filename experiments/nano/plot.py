"""Draw how the built-in model was trained, and keep the numbers: docs/img/nano.png and docs/lab/nano-metrics.csv.

    python -m experiments.nano.plot runs/nano

Reads metrics.jsonl of the warm-ups and of each stage that is there; of the others the numbers stay as they were. Losses
are means over 20 steps.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

READINGS = ("reading", "reading-again", "reading-on", "reading-names")
WARM_UPS = ("warm-up", *READINGS)
STAGES = (
    "language", "alignment", "pretraining", "fine-tuning", "fine-tuning-on", "naming", "lines", "naming-sheets",
    "naming-all", "all-tasks", "small-letters",
)  # fmt: skip
DRAWN = STAGES[1:]
# Shares of patches, and of things that visual tokens hold, which the warm-ups recognize.
FOUND = ("latin", "chinese", "sprite", "shape", "read_latin", "read_chinese", "read_sprite", "read_shape", "read_space")
CATEGORIES = ("ocr", "vqa", "grounding", "table_chart", "caption", "text")
LOSSES = (*CATEGORIES, "attention")  # the last is no category: where attention falls
WINDOW = 20
RARE, RARE_POINTS = ("loss caption", "loss text"), 5  # in the picture: so many windows are one point
DOCS = Path(__file__).parents[2] / "docs"


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the steps of a run in order; a resumed warm-up may hold one twice, of which the last counts."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in found if "evaluation" not in line}.items())]


def means(steps: list[dict[str, Any]], loss: str) -> list[tuple[float, float]]:
    """Return (last step, mean) of every window in which a category occurs, or "attention"."""
    points = []
    for start in range(0, len(steps), WINDOW):
        window = steps[start : start + WINDOW]
        values = [
            {"attention": line.get("auxiliary_loss", line.get("attention_loss")), **line["loss_by_category"]}.get(loss)
            for line in window
        ]
        found = [value for value in values if value is not None]
        if found:
            points.append((window[-1]["step"], sum(found) / len(found)))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    warm_ups = {name: lines(args.runs / name) for name in WARM_UPS}
    stages = {name: lines(args.runs / name) for name in STAGES}
    path = DOCS / "lab/nano-metrics.csv"
    known: list[Any] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            known = list(csv.reader(file))[1:]
    rows: list[tuple[str, int, str, float]] = []
    for name, steps in warm_ups.items():
        rows += [(name, line["step"], what, line[what]) for line in steps for what in FOUND if what in line]
    for name, steps in stages.items():
        for what in LOSSES:
            rows += [(name, int(step), f"loss {what}", round(loss, 4)) for step, loss in means(steps, what)]
    fresh = {row[0] for row in rows}
    kept = [row for name in (*WARM_UPS, *STAGES) for row in (rows if name in fresh else known) if row[0] == name]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("stage", "step", "what", "value"))
        table.writerows(kept)
    draw([(name, int(step), what, float(value)) for name, step, what, value in kept])


def draw(rows: list[tuple[str, int, str, float]]) -> None:
    """Draw what was found in the reading stages, and the losses of the others, from (stage, step, what, value)."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_in_a_row(left, rows, READINGS, {what: style_of_share(what) for what in FOUND}, scale=100)
    left.set(title="Reading: patches, and things of tokens, found", xlabel="step", ylabel="%", ylim=(0, 100))
    losses = {f"loss {what}": {"label": what.replace("_", " and "), "color": f"C{number}",
                               "linestyle": "--" if what == "attention" else "-"}
              for number, what in enumerate(LOSSES)}  # fmt: skip
    draw_in_a_row(right, rows, DRAWN, losses)
    right.set(title="Stages: loss by category, and of attention", xlabel="step", ylabel="nats per token", ylim=(0, 5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "img/nano.png", dpi=120)


def style_of_share(what: str) -> dict[str, str]:
    """Return how a share is drawn: one color for a sort of thing, dotted for patches."""
    colour = ("latin", "chinese", "sprite", "shape", "space").index(what.removeprefix("read_"))
    is_read = what.startswith("read_")
    return {"label": what.replace("_", " "), "color": f"C{colour}", "linestyle": "-" if is_read else ":"}


def draw_in_a_row(
    axes: Axes,
    rows: list[tuple[str, int, str, float]],
    stages: tuple[str, ...],
    styles: dict[str, dict[str, Any]],
    scale: float = 1,
) -> None:
    """Draw the curves of some stages one after another, with a line and a name where each ends."""
    start, labelled = 0, set[str]()
    for stage in stages:
        last = 0
        for what, style in styles.items():
            points = [(step, value) for name, step, found, value in rows if (name, found) == (stage, what)]
            if not points:
                continue
            points = thinned(points) if what in RARE else points
            shown = {key: value for key, value in style.items() if key != "label" or what not in labelled}
            labelled.add(what)
            axes.plot([start + step for step, _ in points], [scale * value for _, value in points], **shown)
            last = max(last, points[-1][0])
        start += last
        axes.axvline(start, color="grey", linewidth=0.8)
        axes.annotate(
            stage, (start, 0.98), (-3, 0), xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90,
            ha="right", va="top", fontsize=8, color="grey",
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )  # fmt: skip


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return means of so many points: a rare category has few samples in each."""
    groups = [points[first : first + RARE_POINTS] for first in range(0, len(points), RARE_POINTS)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


if __name__ == "__main__":
    main()
