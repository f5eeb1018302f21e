"""What a pipeline loses to waiting, with the encoder cut by layers and as one stage: measured, and simulated.

    python benchmarks/pipeline_bubble.py --out bubble.json          # four processes, about eight minutes
    python benchmarks/pipeline_bubble.py --simulate-only            # the paper's scale alone, under a minute

Measured: four processes run the trainer's own pipeline over gloo, segments, schedules, exchange and all, around a
model as deep as the size asked for but very narrow. In place of the arithmetic that is missing each segment sleeps for
as long as its units cost by formula, forward and twice as long backward, so that four processes need not share cores.
The bubble is the part of the ranks' time in which they do not sleep; messages and the narrow model's own work count as
waiting, and are small beside the sleeps on a machine with nothing else to do. The simulator of `vl2 plan` gets the same
seconds.

Simulated: the three sizes on the paper's clusters, with eight stages, by `vl2 plan`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from local_ranks import run_ranks
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vl2.config import ModelConfig, preset
from vl2.data.pack import Packing
from vl2.model import VL2, init_weights
from vl2.plan.cluster import DEVICES, Cluster, DataProfile
from vl2.plan.search import PAPER
from vl2.plan.step_time import LayoutChoice, StepPacks, step_time
from vl2.plan.timeline import Timeline, simulate
from vl2.train.blank import blank_pack
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parallel.pipeline_split import PipelineSplit, UnitCosts, split_pipeline, units
from vl2.train.parallel.rank_layout import make_layout
from vl2.train.parallel.schedules import MicroBatchShape
from vl2.train.parallel.segment import MicroBatch
from vl2.train.ranks import Ranks
from vl2.train.recipe import SplitKind
from vl2.train.stage import STAGES

CUTS: tuple[SplitKind, ...] = ("encoder_first", "contiguous", "looped")
RANKS, TILES, TOKENS, LENGTH = 4, 12, 4096, 600.0
BACKWARD = 2.0
NARROW = {
    "language_config": {
        "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_attention_heads": 1,
        "num_key_value_heads": 1, "n_routed_experts": 2, "num_experts_per_tok": 1, "kv_lora_rank": 8,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "vocab_size": 64,
    },
    "vision_config": {"width": 8, "heads": 1},
    "projector_config": {"input_dim": 8, "n_embed": 16},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to cut one size."""

    size: str
    cut: str
    measured_bubble: float
    simulated_bubble: float
    measured_s: float
    simulated_s: float


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One way to cut one size on the paper's cluster."""

    size: str
    gpus: int
    cut: str
    bubble: float
    step_s: float


class Asleep(torch.autograd.Function):
    """Pass a value on; backward sleep first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


def narrow_config(size: str) -> ModelConfig:
    """Return a shape with the depth of a size."""
    depth, source = preset(size), preset("nano").to_dict()
    changed = {part: source[part] | values for part, values in NARROW.items()}
    changed["language_config"]["num_hidden_layers"] = depth.language_config.num_hidden_layers
    changed["vision_config"]["layers"] = depth.vision_config.layers
    return ModelConfig.from_dict(source | changed)


def cut_and_seconds(size: str, kind: SplitKind, batch_s: float) -> tuple[PipelineSplit, list[float]]:
    """Return the cut of a size and the forward seconds of its segments, `batch_s` for all of them."""
    config = preset(size)
    row = units(config)
    costs = UnitCosts.by_formula(config, LENGTH).forward(row, config, tiles=TILES, tokens=TOKENS)
    cut = split_pipeline(kind, row, costs, RANKS)
    cost = dict(zip(row, costs, strict=True))
    return cut, [batch_s * sum(cost[unit] for unit in segment) / sum(costs) for segment in cut.segments]


def simulated(cut: PipelineSplit, seconds: Sequence[float], num_batches: int) -> Timeline:
    return simulate(
        RANKS,
        len(cut.segments),
        num_batches,
        duration_s=lambda action: seconds[action.segment] * (1.0 if action.direction == "forward" else BACKWARD),
        transfer_s=lambda _: 0.0,
    )


def time_pipeline(ranks: Ranks, size: str, kind: SplitKind, args: argparse.Namespace) -> float:
    """Return the seconds of the fastest step."""
    cut, seconds = cut_and_seconds(size, kind, args.batch_s)
    model = VL2(narrow_config(size))
    init_weights(model, 0)
    pipeline = PipelineModel(model, cut, make_layout(ranks, pipeline=RANKS), torch.float32)
    for number, segment in pipeline.segments.items():
        segment.register_forward_pre_hook(lambda *_, s=seconds[number]: time.sleep(s))
        segment.register_forward_hook(
            lambda _module, _inputs, out, s=seconds[number]: sleep_backward(out, s * BACKWARD)
        )
    pack = blank_pack(pipeline.config)
    batch = MicroBatch(pack=pack, moves=None, num_tiles=1, loss_scale=1.0, balance_scale=0.0)
    shape = MicroBatchShape(num_batches=args.batches, num_tiles=1, num_tokens=len(pack), is_trained=True)
    best = float("inf")
    for _ in range(args.repeats + 1):  # the first connects the processes
        for segment in pipeline.segments.values():
            segment.forget()
            segment.begin([batch] * args.batches)
        ranks.barrier()
        start = time.perf_counter()
        pipeline.pipelines.run(shape, pipeline.carries_gradient)
        ranks.barrier()
        best = min(best, time.perf_counter() - start)
    return best


def sleep_backward(out: Any, seconds: float) -> Any:
    if isinstance(out, tuple):
        return (Asleep.apply(out[0], seconds), *out[1:])
    return Asleep.apply(out, seconds)


def measure(size: str, kind: SplitKind, args: argparse.Namespace) -> Row:
    length = max(run_ranks(RANKS, time_pipeline, size, kind, args))
    cut, seconds = cut_and_seconds(size, kind, args.batch_s)
    timeline = simulated(cut, seconds, args.batches)
    busy = sum(seconds) * args.batches * (1 + BACKWARD)
    return Row(
        size=size,
        cut=kind,
        measured_bubble=1 - busy / (RANKS * length),
        simulated_bubble=timeline.bubble,
        measured_s=length,
        simulated_s=timeline.length_s,
    )


def at_paper_scale(size: str, kind: SplitKind, stages: int) -> PaperRow:
    gpus, _ = PAPER[size]
    device, config, stage = DEVICES["a100"], preset(size), STAGES[size]["pretraining"]
    cluster = Cluster(num_gpus=gpus, **device.__dict__)
    profile = DataProfile.common()
    tokens, tiles = profile.draw_packs(config, Packing(), stage.batch_size, 0)
    costs = UnitCosts.by_formula(
        config,
        profile.document_length(config),
        dense_rate=cluster.peak_flops * cluster.dense_efficiency,
        expert_rate=cluster.peak_flops * cluster.expert_efficiency,
    )
    choice = LayoutChoice(pipeline=stages, expert_parallel=1, cut=kind)
    step = step_time(config, cluster, choice, costs, StepPacks(tokens=tokens, tiles=tiles), bytes_per_parameter=16)
    return PaperRow(size=size, gpus=gpus, cut=kind, bubble=step.bubble, step_s=step.total_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], choices=("tiny", "small", "base"))
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-s", type=float, default=2.0, help="forward seconds of a micro-batch, all ranks")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--stages", type=int, default=8, help="at the paper's scale")
    parser.add_argument("--simulate-only", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = [] if args.simulate_only else [measure(size, kind, args) for size in args.sizes for kind in CUTS]
    paper = [at_paper_scale(size, kind, args.stages) for size in PAPER for kind in CUTS]
    console = Console(width=110)
    if rows:
        table = Table(
            "size", "cut", "bubble, measured", "simulated", "step, measured", "simulated", title="4 processes"
        )
        for row in rows:
            table.add_row(
                row.size, row.cut, f"{row.measured_bubble:.1%}", f"{row.simulated_bubble:.1%}",
                f"{row.measured_s:.2f} s", f"{row.simulated_s:.2f} s",
            )  # fmt: skip
        console.print(table)
    table = Table("size", "GPUs", "cut", "bubble", "step", title=f"simulated, {args.stages} stages")
    for one in paper:
        table.add_row(one.size, str(one.gpus), one.cut, f"{one.bubble:.1%}", f"{one.step_s:.1f} s")
    console.print(table)
    if args.out:
        both = {"measured": [asdict(row) for row in rows], "paper": [asdict(one) for one in paper]}
        args.out.write_text(json.dumps(both, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
