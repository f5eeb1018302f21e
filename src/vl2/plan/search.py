"""Search the parallel layouts of a training stage on a cluster for the fastest one that fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np

from vl2.config import ModelConfig
from vl2.data.pack import Packing
from vl2.errors import UserError
from vl2.plan.cluster import Cluster, DataProfile
from vl2.plan.step_time import LayoutChoice, StepPacks, StepSimulation, StepTime
from vl2.plan.unit_sizes import segment_size
from vl2.train.flops import ForwardCost, step_flops
from vl2.train.parallel.pipeline_split import UnitCosts, units
from vl2.train.parallel.tensor_parallel import check_tensor_parallel
from vl2.train.recipe import SplitKind
from vl2.train.shard import check_divided
from vl2.train.size import held_dtype, optimizer_bytes
from vl2.train.stage import Stage, still_stage_parts, total_steps

_MAX_STAGES, _MAX_EXPERT_RANKS = 16, 16
_TENSOR_RANKS = (1, 2, 4, 8)
# What may be recomputed, by the user's choice: (decoder layers, encoder).
_RECOMPUTED: Mapping[bool | None, tuple[tuple[bool, bool], ...]] = {
    None: ((False, False), (False, True), (True, True)),
    False: ((False, False),),
    True: ((True, True),),
}
USABLE = 0.9  # share of the memory; the rest is lost to fragmentation and used by libraries
ROUNDING = 1e-9  # relative difference that the order of sums can make between a lower bound and a simulation
_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class FixedLayout:
    """The parts of a layout that the user has fixed. None leaves a part to the search."""

    pipeline: int | None = None
    expert_parallel: int | None = None
    tensor_parallel: int | None = None
    cut: SplitKind | None = None
    balances_tiles: bool = True
    recomputes: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """The chosen layout of a training stage, with its step time, number of steps and total time."""

    stage: str
    choice: LayoutChoice
    num_data: int
    step: StepTime
    tokens_per_step: float
    tiles_per_step: float
    num_steps: int
    flops_per_step: float
    cluster: Cluster

    @property
    def seconds(self) -> float:
        return self.num_steps * self.step.total_s

    @property
    def days(self) -> float:
        return self.seconds / _DAY_S

    @property
    def gpu_hours(self) -> float:
        return self.seconds / 3600 * self.cluster.num_gpus

    @property
    def tokens_per_s(self) -> float:
        return self.tokens_per_step / self.step.total_s

    @property
    def mfu(self) -> float:
        """Return the model FLOPs utilization: useful operations (no recomputation, no padding) over the peak rate."""
        return self.flops_per_step / self.step.total_s / (self.cluster.peak_flops * self.cluster.num_gpus)

    def to_dict(self) -> dict[str, Any]:
        step = {name: value for name, value in self.step.__dict__.items() if name != "timelines"}
        return {
            "stage": self.stage,
            "layout": asdict(self.choice) | {"data": self.num_data},
            "step": {**step, "total_s": self.step.total_s},
            "tokens_per_step": self.tokens_per_step,
            "tiles_per_step": self.tiles_per_step,
            "num_steps": self.num_steps,
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
            "days": self.days,
            "gpu_hours": self.gpu_hours,
        }


def plan_stage(
    config: ModelConfig,
    stage: Stage,
    cluster: Cluster,
    profile: DataProfile,
    fixed: FixedLayout | None = None,
    costs: UnitCosts | None = None,
    *,
    seed: int = 0,
) -> PlannedStage:
    """Return the fastest layout that fits into memory. Raise UserError if none does.

    `costs` are measured seconds; with None they are computed from the cluster's rates.
    """
    fixed = fixed or FixedLayout()
    packing = Packing(seq_len=stage.seq_len, is_packed=stage.is_packed)
    tokens, tiles = profile.draw_packs(config, packing, stage.batch_size, seed)
    packs = StepPacks(tokens=tokens, tiles=tiles)
    if costs is None:
        costs = UnitCosts.by_formula(
            config,
            profile.document_length(config),
            dense_rate=cluster.peak_flops * cluster.dense_efficiency,
            expert_rate=cluster.peak_flops * cluster.expert_efficiency,
            trained_share=0.5,
        )
    # Frozen weights are bfloat16.
    held = held_dtype(stage)
    bytes_per_parameter = float(held.itemsize + optimizer_bytes(stage, held))
    if "language" in stage.frozen:
        bytes_per_parameter = 2.0 + (bytes_per_parameter - 2.0) * _trained_share(config)

    def simulation(choice: LayoutChoice) -> StepSimulation:
        return StepSimulation(config, cluster, choice, costs, packs, bytes_per_parameter)

    fitting: list[tuple[float, LayoutChoice]] = []  # with lower bounds of their seconds
    least_memory: tuple[float, LayoutChoice] | None = None
    for choice in candidate_layouts(config, cluster, fixed):
        if cluster.num_gpus // (choice.pipeline * choice.tensor_parallel) > len(tokens):
            continue  # some data ranks would have no pack
        candidate = simulation(choice)
        memory_bytes = candidate.memory_bytes()
        if least_memory is None or memory_bytes < least_memory[0]:
            least_memory = memory_bytes, choice
        if memory_bytes <= USABLE * cluster.memory_bytes:
            fitting.append((candidate.least_s(), choice))
    if not fitting:
        raise UserError(_no_layout_message(cluster, least_memory, len(tokens)))
    best: tuple[LayoutChoice, StepTime] | None = None
    for least_s, choice in sorted(fitting, key=itemgetter(0)):
        if best is not None and least_s > (1 + ROUNDING) * best[1].total_s:
            break  # neither this layout nor any after it can be faster
        step = simulation(choice).run()
        if best is None or step.total_s < best[1].total_s:
            best = choice, step
    assert best is not None
    choice, step = best
    mean = float(tokens.mean())
    return PlannedStage(
        stage=stage.name,
        choice=choice,
        num_data=cluster.num_gpus // (choice.pipeline * choice.tensor_parallel),
        step=step,
        tokens_per_step=float(tokens.sum()),
        tiles_per_step=float(tiles.sum()),
        num_steps=total_steps(stage) if stage.is_packed else total_steps(stage, mean),
        flops_per_step=_flops(config, stage, profile, tokens, tiles),
        cluster=cluster,
    )


def candidate_layouts(config: ModelConfig, cluster: Cluster, fixed: FixedLayout) -> Iterator[LayoutChoice]:
    """Yield the layouts that are possible with the model and the cluster."""
    row = units(config)
    num_visual = sum(unit.is_visual for unit in row)
    most = min(_MAX_STAGES, num_visual, len(row) - num_visual)
    for pipeline in [fixed.pipeline] if fixed.pipeline else range(1, most + 1):
        if cluster.num_gpus % pipeline:
            continue
        num_stage = cluster.num_gpus // pipeline
        for expert_parallel in [fixed.expert_parallel] if fixed.expert_parallel else range(1, _MAX_EXPERT_RANKS + 1):
            if num_stage % expert_parallel or not _can_shard_experts(config, num_stage, expert_parallel):
                continue
            cuts: list[SplitKind] = [fixed.cut] if fixed.cut else ["looped", "contiguous"]
            sizes = [fixed.tensor_parallel] if fixed.tensor_parallel else _TENSOR_RANKS
            tensor = [size for size in sizes if _can_divide_layers(config, cluster, num_stage, size)]
            for size, cut, (layers, encoder) in product(
                tensor, cuts if pipeline > 1 else cuts[:1], _RECOMPUTED[fixed.recomputes]
            ):
                yield LayoutChoice(
                    pipeline=pipeline,
                    expert_parallel=expert_parallel,
                    tensor_parallel=size,
                    cut=cut if pipeline > 1 else "contiguous",
                    balances_tiles=fixed.balances_tiles,
                    recomputes=layers,
                    recomputes_encoder=encoder,
                )


def _can_divide_layers(config: ModelConfig, cluster: Cluster, num_stage: int, size: int) -> bool:
    """Tell whether the trainer can divide the layers among `size` ranks, which must be in one machine."""
    if num_stage % size or cluster.gpus_per_node % size:
        return False
    try:
        check_tensor_parallel(config.language_config, size, num_stage // size)
    except UserError:
        return False
    return True


def _can_shard_experts(config: ModelConfig, num_data: int, expert_parallel: int) -> bool:
    """Tell whether the trainer can shard the model's experts over these ranks."""
    try:
        check_divided(config.language_config, num_data, expert_parallel)
    except UserError:
        return False
    return bool(config.language_config.n_routed_experts) or expert_parallel == 1


def _no_layout_message(cluster: Cluster, least: tuple[float, LayoutChoice] | None, num_packs: int) -> str:
    if least is None:
        return (
            f"no layout divides {cluster.num_gpus} GPUs and the experts evenly and gives each data rank at least one "
            f"of {num_packs} sequences: choose another number of GPUs"
        )
    needed, choice = least
    return (
        f"nothing fits: the smallest layout (pipeline {choice.pipeline}, expert parallel {choice.expert_parallel}) "
        f"needs {needed / 1e9:.0f} GB on a GPU, of which {USABLE * cluster.memory_bytes / 1e9:.0f} of "
        f"{cluster.memory_bytes / 1e9:.0f} GB are usable"
    )


def _trained_share(config: ModelConfig) -> float:
    """Return approximately the share of the parameters outside the language model."""
    row = units(config)
    visual, whole = segment_size(config, row[: config.siglip.layers + 1]), segment_size(config, row)
    return (visual.dense + visual.experts) / (whole.dense + whole.experts)


def _flops(
    config: ModelConfig,
    stage: Stage,
    profile: DataProfile,
    tokens: np.ndarray[Any, Any],
    tiles: np.ndarray[Any, Any],
) -> float:
    length = profile.document_length(config)
    total = float(tokens.sum())
    return step_flops(
        ForwardCost.of(config),
        still_stage_parts(stage),
        lengths=[length] * max(round(total / length), 1),
        num_trained=round(0.5 * total),
        num_tiles=int(tiles.sum()),
    )


PAPER: Mapping[str, tuple[int, int]] = {"tiny": (128, 7), "small": (264, 10), "base": (336, 14)}
"""Model size -> (GPUs, days of all stages). Source: arXiv 2412.10302, section on training infrastructure."""
