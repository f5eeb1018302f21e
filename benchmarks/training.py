"""Training speed: our step against the transformers library's layers in a plain loop, and against the machine's limit.

    python benchmarks/training.py --out training.json
    python benchmarks/training.py --quick

Both sides train the same weights on the same packs, one thread or as many as given, and take turns step by step, so
that whatever else the machine does falls on both. Before anything is timed their losses must agree. The plain loop is
what a training script is without this package: SigLIP and DeepSeek-V3 layers of the library with its grouped experts,
its own handling of packed documents, logits of all places, AdamW of PyTorch. In bfloat16 the plain loop holds
weights and moments in bfloat16, which is less work than our float32 masters.

The limit is what one large matrix product of the same type reaches on this machine, and the share of it (MFU) the
arithmetic that a step needs, by formula, over what the limit does in that time. The loader is timed alone and in front
of the trainer. Figures of different runs or machines do not compare; the ratios of one run do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from loader import MIXTURE, PACKAGE, make_record
from rich.console import Console
from rich.table import Table
from transformers_model import TransformersModel

from vl2.config import ModelConfig, preset
from vl2.data.index import build_index
from vl2.data.loader import LoadedStep, Loader, LoaderOptions
from vl2.data.pack import Packed, Packing
from vl2.data.pack_plan import PackPlan, PlanOptions
from vl2.data.record import Record
from vl2.dtypes import DTYPES
from vl2.model import VL2, init_weights
from vl2.process.processor import Processor
from vl2.train.flops import ForwardCost, measure_rate, step_flops
from vl2.train.ranks import ONE
from vl2.train.shard import shard
from vl2.train.stage import Stage
from vl2.train.step import TrainStep

COMPUTE = ["float32", "bfloat16"]
# Five times the built-in model's arithmetic per token, with its tokenizer and tiles.
MIDDLE = {
    "language_config": {
        "hidden_size": 512, "intermediate_size": 1536, "moe_intermediate_size": 256, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "n_routed_experts": 32, "kv_lora_rank": 128,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
    "vision_config": {"width": 384, "layers": 8},
    "projector_config": {"input_dim": 384, "n_embed": 512},
}  # fmt: skip
STAGE = Stage(
    name="benchmark",
    learning_rate=1e-4,
    schedule="constant",
    warmup_steps=0,
    balance_loss_weight=0.0,  # the plain loop has none
    expert_bias_step=0.001,
    num_steps=1,
    batch_size=1,
    is_packed=True,
    mask_prompt=False,
)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one trainer on one model in one type."""

    tokens_per_s: float  # without padding
    tiles_per_s: float
    share_of_limit: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of the table."""

    model: str
    dtype: str
    ours: Speed
    plain: Speed
    limit_flops_per_s: float
    loss_difference: float  # of the two before training, relative

    @property
    def ratio(self) -> float:
        return self.ours.tokens_per_s / self.plain.tokens_per_s


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What the loader gives, and what the built-in model's trainer takes."""

    workers: int
    loader_samples_per_s: float
    loader_tiles_per_s: float
    trainer_samples_per_s: float
    trainer_tiles_per_s: float
    waiting_share: float  # of the trainer's time


def model_config(name: str) -> ModelConfig:
    """Return the built-in model's shape, or a larger one with the same tokens and tiles."""
    config = preset("nano")
    if name == "nano":
        return config
    source = config.to_dict()
    return ModelConfig.from_dict(source | {part: source[part] | changed for part, changed in MIDDLE.items()})


def make_data(args: argparse.Namespace) -> tuple[PackPlan, dict[str, list[Record]], Processor]:
    """Return generated records, pictures and text 70 : 30 by tokens, and their plan."""
    processor = Processor.from_folder(PACKAGE / "nano")
    stores = {name: [make_record(name, i) for i in range(args.records)] for name in sorted(MIXTURE.categories)}
    sources = [s for name, store in stores.items() for s in build_index(name, store, processor).sources()]
    options = PlanOptions(packs_per_step=args.packs, packing=Packing(seq_len=args.seq_len))
    return PackPlan(sources, MIXTURE, options), stores, processor


class Ours:
    """A `TrainStep`."""

    def __init__(self, model: VL2, dtype: torch.dtype) -> None:
        self.step = TrainStep(shard(model, "replicated", ONE, dtype), STAGE, ONE)

    def train(self, packs: tuple[Packed, ...]) -> float:
        report = self.step.accumulate(packs)
        self.step.apply(report, STAGE.learning_rate)
        return report.loss


class Plain:
    """A training loop over the library's layers."""

    def __init__(self, model: VL2, dtype: torch.dtype) -> None:
        self.model = TransformersModel(model).to(dtype)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=STAGE.learning_rate, betas=STAGE.betas, weight_decay=STAGE.weight_decay,
            fused=True,
        )  # fmt: skip

    def train(self, packs: tuple[Packed, ...]) -> float:
        count = sum(int((pack.labels[1:] >= 0).sum()) for pack in packs)
        total = 0.0
        for pack in packs:
            loss = self.model(pack.with_length(pack.num_tokens)) / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), STAGE.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def flops(config: ModelConfig, packs: tuple[Packed, ...]) -> float:
    """Return the arithmetic of a step."""
    cost = ForwardCost.of(config)
    return sum(
        step_flops(
            cost,
            STAGE.frozen,
            lengths=pack.cu_seqlens.diff().tolist()[: len(pack.names)],
            num_trained=int((pack.labels[1:] >= 0).sum()),
            num_tiles=len(pack.tiles),
        )
        for pack in packs
    )


def compare(name: str, dtype_name: str, steps: list[LoadedStep]) -> Comparison:
    """Let both sides take the same steps in turns. The first step of each is a check, and not timed."""
    config, dtype = model_config(name), DTYPES[dtype_name]
    model = VL2(config)
    init_weights(model, seed=0)
    plain, ours = Plain(model, dtype), Ours(model, dtype)
    losses = ours.train(steps[0].packs), plain.train(steps[0].packs)
    difference = abs(losses[0] - losses[1]) / losses[1]
    allowed = 1e-4 if dtype is torch.float32 else 2e-2
    assert difference < allowed, f"{name} {dtype_name}: losses {losses} are not of the same model"
    sides = {"ours": ours, "plain": plain}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    limit = 0.0
    for number, step in enumerate(steps[1:]):
        for side in sides if number % 2 else reversed(sides):
            start = time.perf_counter()
            sides[side].train(step.packs)
            seconds[side].append(time.perf_counter() - start)
        limit = max(limit, measure_rate(torch.device("cpu"), dtype))
    work = [flops(config, step.packs) for step in steps[1:]]
    tokens = [sum(pack.num_tokens for pack in step.packs) for step in steps[1:]]
    tiles = [sum(len(pack.tiles) for pack in step.packs) for step in steps[1:]]

    def speed(side: str) -> Speed:
        # Medians of rates, so that one disturbed step does not count.
        return Speed(
            tokens_per_s=statistics.median(n / s for n, s in zip(tokens, seconds[side], strict=True)),
            tiles_per_s=statistics.median(n / s for n, s in zip(tiles, seconds[side], strict=True)),
            share_of_limit=statistics.median(n / s for n, s in zip(work, seconds[side], strict=True)) / limit,
        )

    return Comparison(
        model=name,
        dtype=dtype_name,
        ours=speed("ours"),
        plain=speed("plain"),
        limit_flops_per_s=limit,
        loss_difference=difference,
    )


def samples_and_tiles(steps: list[LoadedStep]) -> tuple[int, int]:
    packs = [pack for step in steps for pack in step.packs]
    return sum(len(pack.names) for pack in packs), sum(len(pack.tiles) for pack in packs)


def feed(make_loader: Callable[[int], Loader], num_steps: int, workers: int, dtype: torch.dtype) -> Feeding:
    """Time the loader alone, and then a trainer that takes what it makes, and waits where it must."""
    alone = iter(make_loader(0))
    next(alone)
    start = time.perf_counter()
    loaded = list(islice(alone, num_steps))
    alone_s = time.perf_counter() - start
    samples, tiles = samples_and_tiles(loaded)

    model = VL2(preset("nano"))
    init_weights(model, seed=0)
    trainer = Ours(model, dtype)
    steps: Iterator[LoadedStep] = iter(make_loader(workers))
    trainer.train(next(steps).packs)
    waiting, taken = 0.0, []
    start = time.perf_counter()
    for _ in range(num_steps):
        asked = time.perf_counter()
        taken.append(next(steps))
        waiting += time.perf_counter() - asked
        trainer.train(taken[-1].packs)
    trained_s = time.perf_counter() - start
    trained_samples, trained_tiles = samples_and_tiles(taken)
    return Feeding(
        workers=workers,
        loader_samples_per_s=samples / alone_s,
        loader_tiles_per_s=tiles / alone_s,
        # Without the waiting: what it would take if it never had to.
        trainer_samples_per_s=trained_samples / (trained_s - waiting),
        trainer_tiles_per_s=trained_tiles / (trained_s - waiting),
        waiting_share=waiting / trained_s,
    )


def show(console: Console, comparisons: list[Comparison], feeding: Feeding) -> None:
    table = Table(
        "model", "type", "tokens/s", "tiles/s", "plain tokens/s", "plain tiles/s", "times plain",
        "limit, GFLOP/s", "of the limit", "plain of the limit", title="training",
    )  # fmt: skip
    for row in comparisons:
        table.add_row(
            row.model, row.dtype, *(f"{x:,.1f}" for x in (
                row.ours.tokens_per_s, row.ours.tiles_per_s, row.plain.tokens_per_s, row.plain.tiles_per_s,
            )), f"{row.ratio:.2f}", f"{row.limit_flops_per_s / 1e9:,.0f}",
            f"{row.ours.share_of_limit:.0%}", f"{row.plain.share_of_limit:.0%}",
        )  # fmt: skip
    console.print(table)
    ratios = (
        feeding.loader_samples_per_s / feeding.trainer_samples_per_s,
        feeding.loader_tiles_per_s / feeding.trainer_tiles_per_s,
    )
    table = Table("", "loader, one thread", "trainer takes", "times", title="loader in front of the built-in model")
    for what, given, taken, ratio in zip(
        ("samples/s", "tiles/s"),
        (feeding.loader_samples_per_s, feeding.loader_tiles_per_s),
        (feeding.trainer_samples_per_s, feeding.trainer_tiles_per_s),
        ratios,
        strict=True,
    ):
        table.add_row(what, f"{given:,.1f}", f"{taken:,.1f}", f"{ratio:.1f}")
    console.print(table)
    console.print(f"the trainer waits {feeding.waiting_share:.1%} of its time, with {feeding.workers} loading threads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["nano", "middle"], default=["nano", "middle"])
    parser.add_argument("--dtypes", nargs="+", choices=COMPUTE, default=COMPUTE)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each model and type")
    parser.add_argument("--packs", type=int, default=4, help="of a step")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--records", type=int, default=64, help="generated records per category")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--workers", type=int, default=1, help="loading threads in front of the trainer")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--quick", action="store_true", help="nano, two steps of one pack: whether it works, no figures"
    )
    args = parser.parse_args()
    if args.quick:
        args.models, args.steps, args.packs, args.records, args.seq_len = ["nano"], 2, 1, 8, 1024
    torch.set_num_threads(args.threads)
    console = Console(width=140)

    plan, stores, processor = make_data(args)

    def make_loader(workers: int) -> Loader:
        return Loader(plan, stores, processor, options=LoaderOptions(num_workers=workers))

    steps = list(islice(make_loader(0), args.steps + 1))
    comparisons = [compare(name, dtype, steps) for name in args.models for dtype in args.dtypes]
    feeding = feed(make_loader, args.steps, args.workers, DTYPES[args.dtypes[-1]])
    show(console, comparisons, feeding)
    if args.out:
        rows = [asdict(row) | {"ratio": row.ratio} for row in comparisons]
        about = {"torch": torch.__version__, "threads": args.threads, "seq_len": args.seq_len, "packs": args.packs}
        text = json.dumps({"setting": about, "training": rows, "loader": asdict(feeding)}, indent=2)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
