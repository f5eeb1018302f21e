"""The steps that `vl2 plan` simulates against the same steps measured here, on one and two CPU processes.

    python benchmarks/plan_check.py --out plan.json      # two quiet cores, about five minutes

First what one block, layer, head and update cost is measured in one process, and how fast two processes exchange
tensors, gather weights and sum gradients; that is all that the simulation gets. Then the trainer runs steps of the same
packs: alone, with sharded weights, with experts divided, and as a pipeline, each on two processes but the first. The
simulated step shall be within 15 % of the measured one. Each process has one thread, so the machine needs as many free
cores as processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from local_ranks import run_ranks
from rich.console import Console
from rich.table import Table
from training import model_config

from vl2.data.pack import Packed, balance
from vl2.grid import num_tiles, num_visual_tokens
from vl2.model import VL2, init_weights
from vl2.plan.cluster import Cluster
from vl2.plan.step_time import GRADIENT_BYTES, LayoutChoice, StepPacks, step_time
from vl2.plan.unit_sizes import CostInputs, measure_costs
from vl2.process.sample import IGNORE_ID
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parallel.pipeline_split import UnitCosts, split_pipeline, units
from vl2.train.parallel.pipeline_step import PipelineStep
from vl2.train.parallel.rank_layout import make_layout
from vl2.train.parts import freeze
from vl2.train.ranks import ONE, Ranks
from vl2.train.shard import shard
from vl2.train.stage import Stage
from vl2.train.step import TrainStep

TEXT = 96  # tokens of a document beside its image
GRIDS = ((1, 1), (2, 1), (2, 2), (1, 1), (3, 1), (1, 2))
STAGE = Stage(
    name="check",
    learning_rate=1e-4,
    schedule="constant",
    warmup_steps=0,
    balance_loss_weight=0.001,
    num_steps=1,
    batch_size=8,
    is_packed=True,
    mask_prompt=False,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layout."""

    name: str
    processes: int
    measured_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        return self.simulated_s / self.measured_s - 1


LAYOUTS: dict[str, tuple[int, LayoutChoice]] = {
    "one process": (1, LayoutChoice(pipeline=1, expert_parallel=1, cut="contiguous", balances_tiles=False)),
    "sharded": (2, LayoutChoice(pipeline=1, expert_parallel=1, cut="contiguous", balances_tiles=False)),
    "experts divided": (2, LayoutChoice(pipeline=1, expert_parallel=2, cut="contiguous", balances_tiles=False)),
    "pipeline, looped": (2, LayoutChoice(pipeline=2, expert_parallel=1, cut="looped", balances_tiles=False)),
    "pipeline, contiguous": (2, LayoutChoice(pipeline=2, expert_parallel=1, cut="contiguous", balances_tiles=False)),
}


def make_packs(config: Any, count: int, seq_len: int) -> list[Packed]:
    """Return packs of documents with images, each as full as its documents make it."""
    random, side = np.random.default_rng(0), config.tokens_per_side
    packs = []
    for number in range(count):
        ids, labels, masks, lengths, grids = [], [], [], [], []
        while True:
            grid = GRIDS[int(random.integers(len(GRIDS)))]
            visual = num_visual_tokens(grid, side)
            if sum(lengths) + visual + TEXT > seq_len:
                break
            tokens = torch.randint(config.language_config.vocab_size, (visual + TEXT,))
            mask = torch.arange(visual + TEXT) < visual
            ids.append(tokens)
            labels.append(tokens.masked_fill(mask, IGNORE_ID))
            masks.append(mask)
            lengths.append(len(tokens))
            grids.append(grid)
        for label in labels:
            label[0] = IGNORE_ID
        side_px = config.vision_config.image_size
        packs.append(
            Packed(
                input_ids=torch.cat(ids),
                labels=torch.cat(labels),
                position_ids=torch.cat([torch.arange(length) for length in lengths]),
                cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
                image_mask=torch.cat(masks),
                tiles=torch.randn(sum(map(num_tiles, grids)), 3, side_px, side_px),
                grids=torch.tensor(grids),
                layout=config.layout(side, side),
                num_tokens=sum(lengths),
                max_seqlen=max(lengths),
                names=tuple(f"{number}-{i}" for i in range(len(lengths))),
                categories=("ocr",) * len(lengths),
            )
        )
    return packs


def make_step(ranks: Ranks, shape: str, choice: LayoutChoice, costs: UnitCosts, packs: list[Packed]) -> TrainStep:
    config = model_config(shape)
    model = VL2(config)
    init_weights(model, 0)
    freeze(model, STAGE)
    if choice.pipeline == 1:
        layout = make_layout(ranks, expert_parallel=choice.expert_parallel)
        shard(model, "sharded", ranks, torch.float32, layout=layout)
        return TrainStep(model, STAGE, ranks)
    row = units(config)
    tiles, tokens = (statistics.mean(map(size, packs)) for size in (lambda p: len(p.tiles), len))
    cut = split_pipeline(choice.cut, row, costs.forward(row, config, tiles=tiles, tokens=tokens), choice.pipeline)
    layout = make_layout(ranks, pipeline=choice.pipeline, expert_parallel=choice.expert_parallel)
    return PipelineStep(PipelineModel(model, cut, layout, torch.float32), STAGE, balances_tiles=False)


def time_steps(ranks: Ranks, args: Any, choice: LayoutChoice, costs: UnitCosts) -> float:
    """Return the median of some steps, the slowest rank's of each."""
    packs = make_packs(model_config(args.model), args.packs, args.seq_len)
    step = make_step(ranks, args.model, choice, costs, packs)
    dealt = balance([len(p.tiles) for p in packs], [len(p) for p in packs], step.data_ranks.size)
    own = [packs[i] for i in dealt[step.data_ranks.rank]]
    times = []
    for _ in range(args.repeats + 1):
        ranks.barrier()
        start = time.perf_counter()
        step.apply(step.accumulate(own), 1e-5)
        ranks.barrier()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def exchange_rate(ranks: Ranks) -> float:
    """Return the bytes per second that a rank receives, of tensors as large as a layer's weights."""
    rows = torch.ones(1 << 22)
    half = len(rows) // ranks.size
    best = float("inf")
    for _ in range(5):
        ranks.barrier()
        start = time.perf_counter()
        ranks.exchange(rows, [half] * ranks.size, [half] * ranks.size)
        best = min(best, time.perf_counter() - start)
    return half * 4 * (ranks.size - 1) / best


def weights_rate(ranks: Ranks) -> float:
    """Return the bytes per second of a layer's weights that are gathered twice and its gradients that are summed once.

    With the copies that sharding makes: gathered shards to whole weights, whole gradients to shards.
    """
    rows = [torch.ones(1 << 10, 1 << 10) for _ in range(8)]
    count = sum(map(torch.numel, rows))
    shard, whole = torch.ones(count // ranks.size), torch.empty(count)
    best = float("inf")
    for _ in range(5):
        ranks.barrier()
        start = time.perf_counter()
        for _ in range(2):
            dist.all_gather_into_tensor(whole, shard)
            parts = whole.view(ranks.size, -1).split_with_sizes([r.numel() // ranks.size for r in rows], dim=1)
            for row, part in zip(rows, parts, strict=True):
                row.view(ranks.size, -1).copy_(part)
        torch._chunk_cat(rows, dim=0, num_chunks=ranks.size, out=whole.view(ranks.size, -1))
        dist.reduce_scatter_tensor(shard, whole)
        best = min(best, time.perf_counter() - start)
    return (2 * 4 + GRADIENT_BYTES) * (count - count // ranks.size) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="middle", choices=("nano", "middle"))
    parser.add_argument("--packs", type=int, default=8, help="of a step")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--pin", action="store_true", help="bind process i to core i")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = model_config(args.model)
    packs = make_packs(config, args.packs, args.seq_len)
    work = StepPacks(tokens=np.array([len(p) for p in packs]), tiles=np.array([len(p.tiles) for p in packs]))
    trained = sum(int((p.labels[1:] != IGNORE_ID).sum()) for p in packs) / sum(map(len, packs))
    load = CostInputs(
        tiles=round(float(work.tiles.mean())),
        tokens=round(float(work.tokens.mean())),
        document=round(statistics.mean(p.num_tokens / len(p.names) for p in packs)),
        trained_share=trained,
    )
    costs = measure_costs(config, load, device=torch.device("cpu"), dtype=torch.float32)
    rate, weights = (min(run_ranks(2, measure, pin=args.pin)) for measure in (exchange_rate, weights_rate))
    rows = []
    for name in args.only:
        size, choice = LAYOUTS[name]
        cluster = Cluster(
            num_gpus=size,
            gpus_per_node=size,
            memory_bytes=1e12,
            peak_flops=1e12,
            node_bandwidth=rate,
            network_bandwidth=rate * size,
            latency_s=2e-4,
            weights_efficiency=weights / rate,
            overlap=0.0,
            value_bytes=4,
        )
        unhidden = LayoutChoice(**(asdict(choice) | {"recomputes": False}))
        simulated = step_time(config, cluster, unhidden, costs, work, bytes_per_parameter=16).total_s
        if size == 1:
            measured = time_steps(ONE, args, choice, costs)
        else:
            measured = max(run_ranks(size, time_steps, args, choice, costs, pin=args.pin))
        rows.append(Row(name=name, processes=size, measured_s=measured, simulated_s=simulated))
        print(f"{name}: measured {measured:.2f} s, simulated {simulated:.2f} s", flush=True)
        if args.out:  # after each, so that what is measured stays if a later one is stopped
            args.out.write_text(json.dumps([asdict(row) | {"error": row.error} for row in rows], indent=2) + "\n")
    table = Table("layout", "processes", "measured", "simulated", "error")
    for row in rows:
        table.add_row(
            row.name, str(row.processes), f"{row.measured_s:.2f} s", f"{row.simulated_s:.2f} s", f"{row.error:+.1%}"
        )
    Console(width=100).print(table)
    print(f"two processes exchange {rate / 1e9:.2f} GB/s each, and gather and sum {weights / 1e9:.2f} GB/s")
    print(f"costs of a forward pass: {costs}")


if __name__ == "__main__":
    main()
