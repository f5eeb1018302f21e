"""Scenarios of training over several processes in any layout, and the same training in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.model.configs import small_config, small_model
from tests.train.packs import Document, random_pack
from vl2.data.pack import Packed
from vl2.grid import Grid
from vl2.model import VL2
from vl2.train.checkpoint import Checkpoints, find_checkpoint
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parallel.pipeline_split import UnitCosts, split_pipeline, units
from vl2.train.parallel.pipeline_step import PipelineStep
from vl2.train.parallel.rank_layout import make_layout
from vl2.train.parallel.tile_balance import TileBalancer
from vl2.train.parts import freeze
from vl2.train.ranks import ONE, Ranks
from vl2.train.recipe import Mode, PipelineSchedule, SplitKind
from vl2.train.shard import full_tensor, local, origin, shard
from vl2.train.size import held_dtype
from vl2.train.stage import Part, Stage
from vl2.train.step import StepReport, TrainStep
from vl2.train.tensor_files import Block

VOCABULARY = 257  # odd: its rows cannot be shared evenly
RATE = 0.01

# The packs of each of four data ranks: ragged images, then text and one image, then an empty rank and text alone.
DIVISION = tuple[tuple[int, ...], ...]
IMAGES: DIVISION = ((1, 5, 2), (3,), (9, 7), (11, 4))
ONE_IMAGE: DIVISION = ((2, 4), (6,), (1, 8), (10,))
TEXT: DIVISION = ((2,), (), (4, 6), ())
STEPS: tuple[DIVISION, ...] = (IMAGES, ONE_IMAGE, TEXT, ((), (), (13,), ()))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained how."""

    mode: Mode = "replicated"
    balance_tiles: int = 0
    expert_parallel: int = 1
    tensor_parallel: int = 1
    pipeline: int = 1
    pipeline_cut: SplitKind = "looped"
    pipeline_schedule: PipelineSchedule = "1f1b"
    frozen: tuple[Part, ...] = ()
    size: str = "base"
    is_bfloat16_optimizer: bool = False
    dtype: torch.dtype = torch.float32
    steps: tuple[DIVISION, ...] = field(default=STEPS, repr=False)

    @property
    def stage(self) -> Stage:
        return Stage(
            name="test",
            learning_rate=RATE,
            rate_multipliers={} if "vision" in self.frozen else {"vision": 0.1},
            frozen=self.frozen,
            schedule="constant",
            warmup_steps=0,
            balance_loss_weight=0.01,
            expert_bias_step=0.0 if "language" in self.frozen or self.size != "base" else 0.01,
            eps=1e-3,  # gradients that are zero but for rounding must not become steps of full size
            clip_norm=0.5,
            is_bfloat16_optimizer=self.is_bfloat16_optimizer,
            num_steps=len(self.steps),
            batch_size=4,
            is_packed=True,
            mask_prompt=False,
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training has come to; weights and gradients are whole ones, of those that this process holds."""

    reports: list[StepReport]
    gradients: dict[str, Tensor]  # of the first step, before clipping
    weights: dict[str, Tensor]


def make_pack(number: int, size: str = "base") -> Packed:
    config = small_config(size, vocab_size=VOCABULARY)
    if number % 2 == 0:
        return random_pack(config, [(14 + number, None), (9, None)], seed=number, num_padding=number, category="text")
    grids: list[Grid] = [(1, 1), (2, 1)] if number % 4 == 1 else [(1, 2)]
    documents: list[Document] = [(8 + number, grid) for grid in grids]
    return random_pack(config, [*documents, (9, None)], seed=number, num_padding=3, category="caption")


def make_model(case: Case, *, is_first: bool) -> VL2:
    if is_first:
        model = small_model(case.size, vocab_size=VOCABULARY).to(case.dtype)
    else:
        with torch.device("meta"):
            model = VL2(small_config(case.size, vocab_size=VOCABULARY))
    freeze(model, case.stage)
    return model


def start(ranks: Ranks, case: Case) -> TrainStep:
    """Lay out a model that only the first rank has."""
    model = make_model(case, is_first=ranks.is_first)
    if case.pipeline > 1 and ranks.size > 1:
        return start_pipeline(ranks, case, model)
    layout = None
    if case.mode == "sharded" and ranks.size > 1:
        layout = make_layout(ranks, expert_parallel=case.expert_parallel, tensor_parallel=case.tensor_parallel)
    shard(model, case.mode, ranks, case.dtype, layout=layout, held=held_dtype(case.stage))
    data, tensor = (ranks, ONE) if layout is None else (layout.data, layout.tensor)
    balancer = None
    if case.balance_tiles and data.size > 1:
        balancer = TileBalancer(model, data, packs_together=case.balance_tiles, tile_dtype=case.dtype)
    return TrainStep(model, case.stage, ranks, balancer, data=data, tensor=tensor)


def take(step: TrainStep, steps: Sequence[DIVISION], case: Case, *, keeps_gradients: bool = False) -> Trained:
    """Take some steps: on one rank with the packs of all."""
    reports: list[StepReport] = []
    gradients: dict[str, Tensor] = {}
    for number, by_rank in enumerate(steps):
        packs = _own(step, by_rank)
        reports.append(step.accumulate([make_pack(pack, case.size) for pack in packs]))
        if keeps_gradients and number == 0:
            gradients = whole_gradients(step)
        step.apply(reports[-1], RATE)
    named = {**dict(step.model.named_parameters()), **dict(step.model.named_buffers())}
    weights = {name: full_tensor(tensor).detach().clone().float() for name, tensor in named.items()}
    return Trained(reports=reports, gradients=gradients, weights=weights)


def whole_gradients(step: TrainStep) -> dict[str, Tensor]:
    """Return the gradients that the optimizer has collected, each whole."""
    parameters = dict(step.model.named_parameters())
    found = {}
    for name, gradient in step.optimizer.gradients():
        parameter = parameters[name].detach()
        if local(parameter) is parameter:
            found[name] = gradient.clone()
        else:
            shaped = torch.empty_like(parameter)
            local(shaped).copy_(gradient)
            found[name] = full_tensor(shaped).clone()
    return found


def train(ranks: Ranks, case: Case) -> Trained:
    return take(start(ranks, case), case.steps, case, keeps_gradients=True)


def train_alone(case: Case) -> Trained:
    """Return what one process makes of a case's packs."""
    return _train_alone(
        Case(
            frozen=case.frozen,
            size=case.size,
            is_bfloat16_optimizer=case.is_bfloat16_optimizer,
            dtype=case.dtype,
            steps=case.steps,
        )
    )


@cache
def _train_alone(case: Case) -> Trained:
    return train(ONE, case)


def _own(step: TrainStep, by_rank: DIVISION) -> list[int]:
    """Return this process's packs: those of all four dealt out over as many data ranks as there are."""
    rank, size = step.data_ranks.rank, step.data_ranks.size
    return [pack for number, packs in enumerate(by_rank) for pack in packs if number % size == rank]


def start_pipeline(ranks: Ranks, case: Case, model: VL2) -> TrainStep:
    layout = make_layout(
        ranks,
        pipeline=case.pipeline,
        expert_parallel=case.expert_parallel,
        tensor_parallel=case.tensor_parallel,
    )
    row = units(model.config)
    costs = UnitCosts.by_formula(model.config, 20.0).forward(row, model.config, tiles=2.0, tokens=60.0)
    split = split_pipeline(case.pipeline_cut, row, costs, case.pipeline)
    pipeline = PipelineModel(
        model, split, layout, case.dtype, held=held_dtype(case.stage), schedule=case.pipeline_schedule
    )
    return PipelineStep(pipeline, case.stage, balances_tiles=bool(case.balance_tiles))


def save_half_way(ranks: Ranks, case: Case, folder: Path) -> None:
    """Take the first half of the steps and leave a checkpoint."""
    step = start(ranks, case)
    half = len(case.steps) // 2
    take(step, case.steps[:half], case)
    checkpoints = checkpoints_of(step, folder)
    checkpoints.save(half, _state(step), "")
    checkpoints.wait()
    checkpoints.close()
    ranks.barrier()


def go_on(ranks: Ranks, case: Case, folder: Path) -> Trained:
    """Take the second half of the steps from a checkpoint."""
    step = start(ranks, case)
    loaded = checkpoints_of(step, folder).load(find_checkpoint(folder), _state(step))
    step.load_state_dict(loaded["train_step"])
    return take(step, case.steps[len(case.steps) // 2 :], case)


def checkpoints_of(step: TrainStep, folder: Path) -> Checkpoints:
    def block_of(tensor: Tensor) -> Block:
        return Block(local=local(tensor), origin=origin(tensor), shape=tuple(tensor.shape))

    return Checkpoints(folder, ranks=step.ranks, block_of=block_of, writes_whole=step.writes_whole)


def _state(step: TrainStep) -> dict[str, Any]:
    return {"model": step.model.state_dict(), "train_step": step.state_dict()}
