"""Loss curves of lower precision beside float32: the bfloat16 optimizer, and FP8 matrix products beside bfloat16 ones.

    python benchmarks/precision.py --runs kept --out docs/img/precision.png

The small model, data and recipe are those of `expert_load.py`, with the bias. Every variant is trained with the same
seeds, so that the distance between two variants can be held against the distance between two seeds. The seed decides
the random weights, the order of the data and the bits of stochastic rounding. Runs that are in the folder are kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import torch
from expert_load import recipe, write_data, write_model
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vl2.train.metrics import read_metrics
from vl2.train.run import train

# By name: changes of the stage, changes of the engine.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32 optimizer": ({}, {}),
    "bfloat16 optimizer": ({"is_bfloat16_optimizer": True}, {}),
    "bfloat16 products": ({}, {"compute": "bfloat16"}),
    "FP8 products": ({}, {"compute": "bfloat16", "fp8": "emulated"}),
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
SMOOTHED = 10  # steps of a running mean, in the picture


def losses(folder: Path, variant: str, seed: int, args: argparse.Namespace) -> list[float]:
    """Train a variant, or read the run that is there."""
    run = folder / f"{variant.replace(' ', '-')}-{seed}"
    base = recipe(folder / "model", folder / "data", run, args, bias_step=0.01)
    stage, engine = VARIANTS[variant]
    changed = replace(base, stage=replace(base.stage, **stage), engine=replace(base.engine, **engine), seed=seed)
    outcome = train(changed, resume=True, quiet=True)
    if outcome.ended != "finished":
        raise SystemExit(f"{outcome.ended} at step {outcome.step}: there is nothing to compare")
    return [line["loss"] for line in read_metrics(run)]


def smooth(values: list[float]) -> list[float]:
    return [statistics.mean(values[max(0, i + 1 - SMOOTHED) : i + 1]) for i in range(len(values))]


def draw(curves: dict[tuple[str, int], list[float]], out: Path) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "vl2", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(name for name, _ in curves))
        for (name, seed), values in curves.items():
            axes.plot(
                range(1, len(values) + 1),
                smooth(values),
                color=COLORS[names.index(name)],
                linestyle=("-", "--", ":")[seed % 3],
                linewidth=1.1,
                label=f"{name}, seed {seed}",
            )
        axes.set_xlabel("step")
        axes.set_ylabel(f"loss, mean of {SMOOTHED} steps")
        axes.set_title("Training loss by precision", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def show(curves: dict[tuple[str, int], list[float]]) -> None:
    table = Table("", "seed", "loss, last tenth", "loss, all steps", title="training loss by precision")
    for (name, seed), values in curves.items():
        end = values[-max(1, len(values) // 10) :]
        table.add_row(name, str(seed), f"{statistics.mean(end):.4f}", f"{statistics.mean(values):.4f}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="picture to write, SVG or PNG")
    parser.add_argument("--runs", type=Path, help="folder where the runs stay, to be drawn again")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.runs or Path(scratch)
        if not (folder / "data").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_model(folder / "model")
            write_data(folder / "data")
        # Seed by seed, so that a pair of variants is complete early.
        runs = product(args.seeds, args.variants)
        curves = {(variant, seed): losses(folder, variant, seed, args) for seed, variant in runs}
    ordered = dict(sorted(curves.items(), key=lambda item: (args.variants.index(item[0][0]), item[0][1])))
    show(ordered)
    if args.out:
        draw(ordered, args.out)


if __name__ == "__main__":
    main()
