"""Draw how the built-in model was trained, and keep the numbers: docs/img/nano.png and docs/nano-metrics.csv.

    python tools/plot_nano.py runs/nano

Reads metrics.jsonl of the warm-up and of each stage that is there. Losses are means over 20 steps.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

STAGES = ("language", "alignment", "pretraining", "fine-tuning")
FOUND = ("latin", "chinese", "sprite", "shape")  # shares of patches that the warm-up recognises
CATEGORIES = ("ocr", "vqa", "grounding", "table_chart", "caption", "text")
WINDOW = 20
DOCS = Path(__file__).parents[1] / "docs"


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the steps of a run in order; a resumed warm-up may hold one twice, of which the last counts."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in found if "evaluation" not in line}.items())]


def means(steps: list[dict[str, Any]], category: str) -> list[tuple[float, float]]:
    """Return (last step, mean loss) of every window in which a category occurs."""
    points = []
    for start in range(0, len(steps), WINDOW):
        window = steps[start : start + WINDOW]
        losses = [line["loss_by_category"][category] for line in window if category in line["loss_by_category"]]
        if losses:
            points.append((window[-1]["step"], sum(losses) / len(losses)))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    warm_up = lines(args.runs / "warm-up")
    stages = {name: lines(args.runs / name) for name in STAGES}
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in FOUND:
        points = [(line["step"], 100 * line[name]) for line in warm_up if name in line]
        left.plot(*zip(*points, strict=True), label=name)
    left.set(title="Warm-up: patches recognised", xlabel="step", ylabel="%")
    for category in CATEGORIES:
        if points := means(stages["pretraining"], category):
            right.plot(*zip(*points, strict=True), label=category)
    right.set(title="Pretraining: loss by category", xlabel="step", ylabel="nats per token", ylim=(0, 6))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "img/nano.png", dpi=120)
    with (DOCS / "nano-metrics.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("stage", "step", "what", "value"))
        for line in warm_up:
            table.writerows(("warm-up", line["step"], name, line[name]) for name in FOUND if name in line)
        for name, steps in stages.items():
            for category in CATEGORIES:
                table.writerows(
                    (name, int(step), f"loss {category}", round(loss, 4)) for step, loss in means(steps, category)
                )


if __name__ == "__main__":
    main()
