"""Draw how the built-in model was trained, and keep the numbers: docs/img/nano.png and docs/nano-metrics.csv.

    python tools/plot_nano.py runs/nano

Reads metrics.jsonl of the warm-ups and of each stage that is there; of the others the numbers stay as they were. The
picture has the stages that are there, and the reading stage that was the last. Losses are means over 20 steps.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

WARM_UPS = ("warm-up", "reading")
STAGES = ("language", "alignment", "pretraining", "fine-tuning")
DRAWN = ("alignment", "pretraining", "fine-tuning")
# Shares of patches, and of things that visual tokens hold, which the warm-ups recognise.
FOUND = ("latin", "chinese", "sprite", "shape", "read_latin", "read_chinese", "read_sprite", "read_shape", "read_space")
CATEGORIES = ("ocr", "vqa", "grounding", "table_chart", "caption", "text")
LOSSES = (*CATEGORIES, "attention")  # the last is no category: where attention falls
WINDOW = 20
RARE, RARE_WINDOW = ("caption", "text"), 100  # in the picture
DOCS = Path(__file__).parents[1] / "docs"


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the steps of a run in order; a resumed warm-up may hold one twice, of which the last counts."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in found if "evaluation" not in line}.items())]


def means(steps: list[dict[str, Any]], loss: str, width: int = WINDOW) -> list[tuple[float, float]]:
    """Return (last step, mean) of every window in which a category occurs, or "attention"."""
    points = []
    for start in range(0, len(steps), width):
        window = steps[start : start + width]
        values = [{"attention": line.get("attention_loss"), **line["loss_by_category"]}.get(loss) for line in window]
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
    path = DOCS / "nano-metrics.csv"
    with path.open(newline="", encoding="utf-8") as file:
        known = list(csv.reader(file))[1:] if path.is_file() else []
    rows: list[tuple[str, int, str, float]] = []
    for name, steps in warm_ups.items():
        rows += [(name, line["step"], what, line[what]) for line in steps for what in FOUND if what in line]
    for name, steps in stages.items():
        for what in LOSSES:
            rows += [(name, int(step), f"loss {what}", round(loss, 4)) for step, loss in means(steps, what)]
    fresh = {row[0] for row in rows}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("stage", "step", "what", "value"))
        for name in (*WARM_UPS, *STAGES):
            table.writerows([row for row in (rows if name in fresh else known) if row[0] == name])
    reading = [row for row in (rows if "reading" in fresh else known) if row[0] == "reading"]
    draw([(what, int(step), float(value)) for _, step, what, value in reading], stages)


def draw(reading: list[tuple[str, int, float]], stages: dict[str, list[dict[str, Any]]]) -> None:
    """Draw what was found in the reading stage, (what, step, share), and the losses of the stages."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for what in FOUND:
        if points := [(step, 100 * share) for name, step, share in reading if name == what]:
            colour = f"C{('latin', 'chinese', 'sprite', 'shape', 'space').index(what.removeprefix('read_'))}"
            left.plot(*zip(*points, strict=True), label=what.replace("_", " "), color=colour,
                      linestyle="-" if what.startswith("read_") else ":")  # fmt: skip
    left.set(title="Reading: patches, and things of tokens, found", xlabel="step", ylabel="%")
    start = 0
    for name in DRAWN:
        if not stages[name]:
            continue
        for number, what in enumerate(LOSSES):
            if points := means(stages[name], what, RARE_WINDOW if what in RARE else WINDOW):
                steps, losses = zip(*points, strict=True)
                label, style = what.replace("_", " and "), "--" if what == "attention" else "-"
                known = [line.get_label() for line in right.lines]
                right.plot([start + step for step in steps], losses, label=None if label in known else label,
                           color=f"C{number}", linestyle=style)  # fmt: skip
        start += stages[name][-1]["step"]
        right.axvline(start, color="grey", linewidth=0.8)
        right.text(start - 8, 4.94, name, ha="right", va="top", rotation=90, fontsize=8, color="grey")
    right.set(title="Stages: loss by category, and of attention", xlabel="step", ylabel="nats per token", ylim=(0, 5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "img/nano.png", dpi=120)


if __name__ == "__main__":
    main()
