"""Expert load with and without the moving bias: two runs of one recipe that differ in `expert_bias_step` alone.

    python benchmarks/expert_load.py --out docs/img/expert_load.png
    python benchmarks/expert_load.py --runs kept --out load.svg

A small model of the built-in model's kind (sigmoid routing, latent attention, 16 experts of which a token visits 4,
three MoE layers) learns from random weights on text, which is this package's own source, and on drawn scenes with
their captions, 85 : 15 by tokens. Both runs go through the loop of `vl2 train`. The load of a layer is that of its
fullest expert over the mean in one optimizer step, as in metrics.jsonl: 1 is even, 16 / 4 = 4 means that all tokens go
to the same four. Neither run has a balance loss, so that the bias is all that balances; its step is larger than the
paper's 0.001, because a run of hundreds of steps has not the time of one of 57,874.
The figures are of the steps after the first hundred. Both runs take some minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import vl2
from vl2.config import preset
from vl2.data.record import Message, Part, Record
from vl2.data.store import write_records
from vl2.synth.scene import Scene
from vl2.synth.source import generate
from vl2.train.metrics import read_metrics
from vl2.train.recipe import DataOptions, EngineOptions, GroupOptions, ModelOptions, Recipe, RunOptions, SourceOptions
from vl2.train.run import train
from vl2.train.stage import Stage

NANO = Path(vl2.__file__).parent / "nano"
DOCUMENT = 1000  # characters
LIMIT = 2.0  # times the even load
COLORS = {"with": "#0072B2", "without": "#D55E00"}
SMALL = {
    "vision_config": {"width": 48, "layers": 2, "heads": 2},
    "projector_config": {"input_dim": 48, "n_embed": 64},
    "language_config": {
        "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16, "v_head_dim": 16,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run's lines say, layer by layer, from the step on that everything is measured from."""

    steps: list[int]
    layers: list[list[float]]  # of every step, the load of each layer
    loss: float  # mean of the last tenth

    @classmethod
    def read(cls, run: Path) -> Load:
        lines = list(read_metrics(run))
        last = lines[-max(1, len(lines) // 10) :]
        return cls(
            steps=[line["step"] for line in lines],
            layers=[line["expert_load"] for line in lines],
            loss=statistics.mean(line["loss"] for line in last),
        )

    @property
    def worst(self) -> list[float]:
        return [max(layers) for layers in self.layers]

    def after(self, step: int) -> list[float]:
        return [worst for number, worst in zip(self.steps, self.worst, strict=True) if number > step]


def write_model(folder: Path) -> Path:
    """Write the shape of the small model, with the built-in tokenizer and tiles."""
    source = preset("nano").to_dict()
    config = source | {part: source[part] | changed for part, changed in SMALL.items()} | {"torch_dtype": "float32"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(NANO / name, folder / name)
    return folder


def write_data(folder: Path) -> Path:
    """Write the package's source as documents, and drawn scenes with captions."""
    folder.mkdir()
    write_records(source_text(), str(folder / "text.jsonl"))
    scenes = generate(Scene(languages=("en", "zh"), tasks=("caption",)), 200, 0, 1)
    write_records((replace(scene, category="caption") for scene in scenes), str(folder / "caption.jsonl"))
    return folder


def source_text() -> Iterator[Record]:
    for path in sorted(Path(vl2.__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for start in range(0, len(text), DOCUMENT):
            piece = text[start : start + DOCUMENT]
            if not piece.strip():
                continue
            message = Message(role="document", parts=(Part(text=piece),))
            yield Record(
                id=f"{path.stem}-{start}", source="vl2", category="text", language="en", licence="Apache-2.0",
                messages=(message,),
            )  # fmt: skip


def recipe(model: Path, data: Path, run: Path, args: argparse.Namespace, bias_step: float) -> Recipe:
    return Recipe(
        model=ModelOptions(name=str(model), init="random"),
        stage=Stage(
            name="expert-load", learning_rate=1e-3, schedule="constant", warmup_steps=20, balance_loss_weight=0.0,
            expert_bias_step=bias_step, num_steps=args.steps, batch_size=8, seq_len=512, is_packed=True,
            mask_prompt=False,
        ),
        run=RunOptions(folder=str(run), save_every_steps=args.steps, export=False),
        data=DataOptions(
            sources=(SourceOptions(name="drawn", path=str(data)),),
            groups=(
                GroupOptions(share=0.15, categories={"caption": 1.0}),
                GroupOptions(share=0.85, categories={"text": 1.0}),
            ),
            window_packs=64, workers=1,
        ),
        engine=EngineOptions(device="cpu", compute="float32"),
    )  # fmt: skip


def draw(loads: dict[str, Load], out: Path, args: argparse.Namespace) -> None:
    """Draw the fullest expert of the worst layer, and the range of the layers behind it."""
    with matplotlib.rc_context({"svg.hashsalt": "vl2", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        names = {"with": f"with the bias, moved by {args.bias_step:g} a step", "without": "without it"}
        for name, load in loads.items():
            low = [min(layers) for layers in load.layers]
            axes.fill_between(load.steps, low, load.worst, color=COLORS[name], alpha=0.2, linewidth=0)
            axes.plot(load.steps, load.worst, color=COLORS[name], linewidth=1.2, label=names[name])
        axes.axhline(LIMIT, color="black", linewidth=0.8, linestyle="--")
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_ylim(0.9, None)
        axes.annotate("twice even", (args.steps, LIMIT), ha="right", va="bottom")
        axes.annotate("even", (args.steps, 1), ha="right", va="bottom")
        axes.set_xlabel("step")
        axes.set_ylabel("fullest expert / mean")
        axes.set_title("Expert load: the worst of three MoE layers, and the range of all", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="picture to write, SVG or PNG")
    parser.add_argument("--runs", type=Path, help="folder where both runs stay, to be drawn again")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--bias-step", type=float, default=0.01)
    parser.add_argument("--settled", type=int, default=100, help="steps that are left out of the printed figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        loads = compare(args.runs or Path(scratch), args)
    show(loads, args.settled)
    if args.out:
        draw(loads, args.out, args)


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Load]:
    """Train both runs in a folder, or read those that are there."""
    if not (folder / "data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder / "model")
        write_data(folder / "data")
    loads: dict[str, Load] = {}
    for name, bias_step in (("with", args.bias_step), ("without", 0.0)):
        outcome = train(recipe(folder / "model", folder / "data", folder / name, args, bias_step), resume=True)
        if outcome.ended != "finished":
            raise SystemExit(f"{outcome.ended} at step {outcome.step}: there is nothing to compare")
        loads[name] = Load.read(folder / name)
    return loads


def show(loads: dict[str, Load], settled: int) -> None:
    title = f"load of the fullest expert over the mean, worst layer, after step {settled}"
    table = Table("bias", "median", "highest", "steps within 2", "loss at the end", title=title)
    for name, load in loads.items():
        after = load.after(settled)
        within = sum(worst <= LIMIT for worst in after) / len(after)
        table.add_row(name, f"{statistics.median(after):.2f}", f"{max(after):.2f}", f"{within:.1%}", f"{load.loss:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
