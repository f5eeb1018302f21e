"""The parts of `gpu.sh` that no other program has, and the table and plot of all parts.

    python benchmarks/gpu_day.py parity --out gpu            # the card against the CPU
    python benchmarks/gpu_day.py products --out gpu          # the Triton kernels: are they right, and how fast
    python benchmarks/gpu_day.py decode --out gpu            # decoding with and without CUDA graphs, in every form
    python benchmarks/gpu_day.py server --out gpu            # the server's engine with several requests at once
    python benchmarks/gpu_day.py train --out gpu             # MFU of a training step of tiny
    python benchmarks/gpu_day.py table --out gpu             # table.md and plot.png of what is in the folder

Each part writes OUT/NAME.json, a list of rows of name, value and unit. `--smoke` takes the built-in model's shape and
few tokens, for a test on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from gpu_inference import decode, products, server
from gpu_settings import Row, Settings, now, random_model

import vl2
from vl2.checkpoint import load_model
from vl2.checkpoint.resolve import built_in_folder
from vl2.config import ModelConfig
from vl2.data.pack import Packed
from vl2.dtypes import DTYPES
from vl2.grid import UNTILED, num_tiles, num_visual_tokens
from vl2.model import VL2
from vl2.process.processor import Processor
from vl2.process.sample import IGNORE_ID, collate
from vl2.synth.scene import Scene
from vl2.synth.source import generate
from vl2.train.flops import ForwardCost, measure_rate, step_flops
from vl2.train.ranks import ONE
from vl2.train.recompute import checkpoint_activations, compile_encoder
from vl2.train.shard import shard
from vl2.train.stage import Stage
from vl2.train.step import TrainStep

PARTS = ("parity", "products", "decode", "server", "ranks", "bench", "transformers", "train", "nano")
UNITS_PLOTTED = ("tokens/s", "GB/s", "% MFU")


def parity(settings: Settings) -> list[Row]:
    """Compare the built-in model on the card with the CPU in float32, on drawn pictures with questions."""
    folder = built_in_folder()
    processor = Processor.from_folder(folder)
    count = 4 if settings.size == "nano" else 32
    records = list(generate(Scene(languages=("en",)), count, 11, 1))
    samples = [processor.encode(record.to_turns(), train=True, name=record.id) for record in records]
    reference = load_model(folder).eval()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(folder).to(dtype).to(settings.device).eval()
        worst, same, places = 0.0, 0, 0
        for sample in samples:
            batch = collate([sample])
            with torch.no_grad():
                expected = reference(batch).logits[0].float()
                found = model(batch.to(settings.device)).logits[0].float().cpu()
            answer = (sample.labels[1:] != IGNORE_ID).nonzero().squeeze(1)
            worst = max(worst, float((found - expected)[answer].abs().max()))
            same += int((found.argmax(1) == expected.argmax(1))[answer].sum())
            places += len(answer)
        name = str(dtype).removeprefix("torch.")
        rows.append(Row(name=f"{name}: largest difference of a logit from the CPU's", value=worst, unit="logits"))
        rows.append(Row(name=f"{name}: same likeliest token as the CPU", value=100 * same / places, unit="%"))
    if rows[0].value > 0.05 or rows[1].value < 99:
        raise SystemExit(f"float32 does not agree with the CPU: {rows[0]}, {rows[1]}")
    return rows


def train(settings: Settings) -> list[Row]:
    """Time a training step at several layouts that fit one card, each in MFU and in GB of memory.

    A layout that does not fit into memory gives a row of 0.
    """
    layouts: dict[str, Callable[[VL2], None]] = {
        "plain": lambda model: None,
        "blocks recomputed": lambda model: checkpoint_activations(model, encoder="blocks", layers=True),
        "encoder recomputed whole": lambda model: checkpoint_activations(model, encoder="whole", layers=True),
    }
    if settings.device.type == "cuda":
        layouts["encoder compiled"] = compile_encoder
    limit = measure_rate(settings.device, settings.dtype, 256 if settings.size == "nano" else None)
    rows = [Row(name="one large matrix product", value=limit / 1e12, unit="TFLOP/s")]
    for name, change in layouts.items():
        for optimizer in ("float32", "bfloat16"):
            label = f"{settings.size}, {name}, optimizer in {optimizer}"
            try:
                rows += train_layout(settings, label, change, optimizer == "bfloat16", limit)
            except torch.cuda.OutOfMemoryError:
                rows.append(Row(name=f"{label}: out of memory", value=0.0, unit="% MFU"))
            if settings.device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def train_layout(
    settings: Settings, label: str, change: Callable[[VL2], None], is_bfloat16: bool, limit: float
) -> list[Row]:
    if settings.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(settings.device)
    ranks = replace(ONE, device=settings.device)
    model = random_model(settings, dtype=torch.float32, device=torch.device("cpu")).train()
    change(model)
    model = shard(model, "replicated", ranks, settings.dtype)
    stage = Stage(
        name="benchmark",
        learning_rate=1e-5,
        schedule="constant",
        warmup_steps=0,
        balance_loss_weight=0.001,
        num_steps=1,
        batch_size=1,
        seq_len=settings.seq_len,
        is_packed=True,
        mask_prompt=False,
        is_bfloat16_optimizer=is_bfloat16,
    )
    step, pack = TrainStep(model, stage, ranks), training_pack(model.config, settings)
    seconds = []
    for _ in range(settings.num_steps + 1):
        start = now(settings.device)
        step.apply(step.accumulate([pack]), 1e-5)
        seconds.append(now(settings.device) - start)
    median = statistics.median(seconds[1:])
    flops = step_flops(
        ForwardCost.of(model.config),
        (),
        lengths=pack.cu_seqlens.diff().tolist()[: len(pack.names)],
        num_trained=int((pack.labels[1:] != IGNORE_ID).sum()),
        num_tiles=len(pack.tiles),
    )
    rows = [
        Row(name=label, value=100 * flops / median / limit, unit="% MFU"),
        Row(name=label, value=pack.num_tokens / median, unit="tokens/s"),
    ]
    if settings.device.type == "cuda":
        rows.append(Row(name=label, value=torch.cuda.max_memory_allocated(settings.device) / 1e9, unit="GB"))
    return rows


def training_pack(config: ModelConfig, settings: Settings) -> Packed:
    """Return a full sequence of random tokens: documents of one picture of one tile, and text."""
    side, tile_px = config.tokens_per_side, config.siglip.image_size
    visual = num_visual_tokens(UNTILED, side)
    count = max(1, settings.seq_len // (2 * visual))
    length = settings.seq_len // count
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 1000, (count * length,), generator=generator)
    mask = torch.zeros(count, length, dtype=torch.bool)
    mask[:, 1 : 1 + visual] = True
    mask = mask.flatten()
    labels = ids.masked_fill(mask, IGNORE_ID)
    labels[::length] = IGNORE_ID
    return Packed(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(length).repeat(count),
        cu_seqlens=(torch.arange(count + 1) * length).to(torch.int32),
        image_mask=mask,
        tiles=torch.randn(count * num_tiles(UNTILED), 3, tile_px, tile_px, generator=generator),
        grids=torch.tensor([UNTILED] * count),
        layout=config.layout(side, side),
        num_tokens=count * length,
        max_seqlen=length,
        names=tuple(f"document {number}" for number in range(count)),
        categories=("vqa",) * count,
    )


def bench_rows(file: Path) -> list[Row]:
    """Return the medians of what `vl2 bench --out` wrote, of every contestant."""
    rows = []
    for stage in json.loads(file.read_text(encoding="utf-8"))["stages"]:
        for name, values in stage["figures"].items():
            rows.append(Row(name=f"{stage['name']}, {name}", value=statistics.median(values), unit=stage["unit"]))
    return rows


def nano_rows(folder: Path) -> list[Row]:
    """Return how far the run of the built-in model's recipe came: steps and last loss of each stage."""
    rows = []
    for metrics in sorted(folder.glob("*/metrics.jsonl")):
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        steps = [line for line in lines if "loss" in line]
        if steps:
            rows.append(Row(name=f"{metrics.parent.name}: steps", value=steps[-1]["step"], unit="steps"))
            rows.append(Row(name=f"{metrics.parent.name}: last loss", value=steps[-1]["loss"], unit="nats"))
    if not rows:
        raise SystemExit(f"there is no step of a stage in {folder}")
    return rows


def make_table(out: Path, device: torch.device) -> bool:
    """Write table.md and plot.png of the parts in a folder, and return whether all parts gave figures."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    states = dict(line.split("\t") for line in (out / "states.txt").read_text(encoding="utf-8").splitlines())
    lines = [f"# {card}", "", f"vl2 {vl2.__version__}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}", ""]
    lines += ["| part | figure | value | unit |", "|---|---|---|---|"]
    plotted: list[tuple[str, Row]] = []
    for part in PARTS:
        file = out / f"{part}.json"
        rows = [Row(**row) for row in json.loads(file.read_text("utf-8"))] if file.is_file() else []
        state = states.get(part, "not run")
        if state == "not run":
            lines.append(f"| {part} | not run | | |")
        elif state != "ok":
            lines.append(f"| {part} | **{state}**: see {part}.log | | |")
        lines += [f"| {part} | {row.name} | {row.value:.4g} | {row.unit} |" for row in rows]
        plotted += [(part, row) for row in rows if row.unit in UNITS_PLOTTED]
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if plotted:
        plot(out / "plot.png", card, plotted)
    return all(state in ("ok", "skipped") for state in states.values())


def plot(path: Path, card: str, rows: Sequence[tuple[str, Row]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = [(unit, [row for _, row in rows if row.unit == unit]) for unit in UNITS_PLOTTED]
    groups = [(unit, found) for unit, found in groups if found]
    heights = [len(found) for _, found in groups]
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(9, 1.2 + 0.3 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (unit, found) in zip(axes[:, 0], groups, strict=True):
        bars = axis.barh([row.name for row in found], [row.value for row in found], color="#4269d0")
        axis.bar_label(bars, [f"{row.value:.3g}" for row in found], padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", labelsize=8)
    figure.suptitle(card)
    figure.savefig(path, dpi=120)
    plt.close(figure)


MEASURED = {"parity": parity, "products": products, "decode": decode, "server": server, "train": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.part == "table":
        sys.exit(0 if make_table(arguments.out, device) else 1)
    settings = Settings.of(device, DTYPES[arguments.dtype], is_smoke=arguments.smoke)
    if arguments.part in ("bench", "transformers"):
        rows = bench_rows(arguments.out / f"{arguments.part}.raw.json")
    elif arguments.part == "nano":
        rows = nano_rows(arguments.out / "nano")
    elif arguments.part == "ranks":
        rows = [Row(**row) for row in json.loads((arguments.out / "ranks.raw.json").read_text(encoding="utf-8"))]
    else:
        rows = MEASURED[arguments.part](settings)
    text = json.dumps([asdict(row) for row in rows], indent=2)
    (arguments.out / f"{arguments.part}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
