"""Two processes that train together are one process: the same losses, norms, weights, biases and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.configs import small_config, small_model
from tests.train.packs import Document, random_pack
from tests.train.two_ranks import TwoRanks
from vl2.data.pack import Packed
from vl2.errors import UserError
from vl2.grid import Grid
from vl2.model import VL2
from vl2.train import shard as shard_module
from vl2.train.adapter_options import AdapterOptions
from vl2.train.checkpoint import Checkpoints, find_checkpoint
from vl2.train.parts import freeze
from vl2.train.ranks import ONE, Ranks
from vl2.train.recompute import EncoderRecompute, checkpoint_activations
from vl2.train.shard import Mode, full_tensor, full_tensors, is_sharded, local, origin, shard, sum_gradients_
from vl2.train.size import held_dtype, size_of
from vl2.train.stage import Part, Stage
from vl2.train.step import StepReport, TrainStep
from vl2.train.tensor_files import Block

# Per step and rank the numbers of packs. Odd packs have images: first both ranks have some, then one has none, then
# one has not even a pack, then neither has an image.
Division = tuple[tuple[int, ...], tuple[int, ...]]
STEPS: tuple[Division, ...] = (((1, 2), (3, 4)), ((0, 2, 4), (5, 7)), ((), (9,)), ((6,), (8, 10)))
# One pack for each rank: a sum of two numbers has no order, so no more than the last bit may differ.
SINGLE_STEPS: tuple[Division, ...] = (((1,), (3,)), ((4,), (5,)), ((), (9,)), ((6,), (8,)))
MODES: tuple[Mode, ...] = ("replicated", "sharded")
VOCABULARY = 257  # odd: its rows cannot be shared evenly
RATE = 0.01
# AdamW's vector instructions round the tail of a share otherwise than its middle: once per step, in the last place.
LAST_PLACES = len(SINGLE_STEPS) * torch.finfo(torch.float32).eps  # of a weight, relative to it


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained how."""

    mode: Mode
    frozen: tuple[Part, ...] = ()
    dtype: torch.dtype = torch.float32
    cuts_rows_only: bool = False
    recomputes: EncoderRecompute | None = None

    @property
    def is_exact(self) -> bool:
        """Whether nothing may differ. In bfloat16 a bit of a master can become a weight's, and that another expert."""
        return self.dtype == torch.bfloat16

    @property
    def steps(self) -> tuple[Division, ...]:
        return SINGLE_STEPS if self.is_exact else STEPS

    @property
    def stage(self) -> Stage:
        return Stage(
            name="test",
            learning_rate=RATE,
            rate_multipliers={"vision": 0.1},
            frozen=self.frozen,
            schedule="constant",
            warmup_steps=0,
            balance_loss_weight=0.01,
            expert_bias_step=0.0 if "language" in self.frozen else 0.01,
            # Gradients that are zero but for rounding must not become steps of full size.
            eps=1e-3,
            clip_norm=1e9 if self.is_exact else 0.5,  # the norm is a sum over all weights, in an order
            num_steps=len(self.steps),
            batch_size=4,
            is_packed=True,
            mask_prompt=False,
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training has come to."""

    reports: list[StepReport]
    weights: dict[str, Tensor]  # whole ones: masters where there are some, and the expert biases
    dtypes: dict[str, torch.dtype]  # of the model's own tensors
    shares: dict[str, float]  # of every weight, the part that this rank holds


def make_pack(number: int) -> Packed:
    config = small_config(vocab_size=VOCABULARY)
    if number % 2 == 0:
        return random_pack(config, [(14 + number, None), (9, None)], seed=number, num_padding=number, category="text")
    grids: list[Grid] = [(1, 1), (2, 1)] if number % 4 == 1 else [(1, 2)]
    documents: list[Document] = [(8 + number, grid) for grid in grids]
    return random_pack(config, [*documents, (9, None)], seed=number, num_padding=3, category="caption")


def start(ranks: Ranks, case: Case) -> TrainStep:
    """Lay out a model that only the first rank has."""
    if ranks.is_first:
        # As released: weights that the compute type can hold.
        model = small_model(vocab_size=VOCABULARY).to(case.dtype)
    else:
        with torch.device("meta"):
            model = VL2(small_config(vocab_size=VOCABULARY))
    freeze(model, case.stage)
    if case.recomputes is not None:
        checkpoint_activations(model, encoder=case.recomputes)
    even = shard_module._placement
    if case.cuts_rows_only:
        shard_module._placement = lambda parameter, num_ranks: shard_module.Shard(0)
    try:
        shard(model, case.mode, ranks, case.dtype)
    finally:
        shard_module._placement = even
    return TrainStep(model, case.stage, ranks)


def take(step: TrainStep, steps: Sequence[Division]) -> list[StepReport]:
    """Take some of the steps: on one rank with the packs of both."""
    reports = []
    for by_rank in steps:
        mine = by_rank[step.ranks.rank] if step.ranks.size > 1 else [pack for packs in by_rank for pack in packs]
        reports.append(step.accumulate([make_pack(pack) for pack in mine]))
        step.apply(reports[-1], RATE)
    return reports


def result(step: TrainStep, reports: list[StepReport]) -> Trained:
    masters = dict(step.optimizer.masters())
    named = dict(step.model.named_parameters())
    return Trained(
        reports=reports,
        weights={
            name: full_tensor(masters.get(name, tensor)).detach().float().clone()
            for name, tensor in full_tensors(step.model)
        },
        dtypes={name: tensor.dtype for name, tensor in step.model.state_dict().items()},
        shares={name: local(tensor).numel() / tensor.numel() for name, tensor in named.items()},
    )


def train(ranks: Ranks, case: Case) -> Trained:
    step = start(ranks, case)
    assert is_sharded(step.model) == (case.mode == "sharded" and ranks.size > 1)
    return result(step, take(step, case.steps))


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


def assert_same(one: Trained, other: Trained, *, is_exact: bool = False) -> None:
    for mine, theirs in zip(one.reports, other.reports, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
        assert mine.balance_loss == pytest.approx(theirs.balance_loss, rel=1e-5)
        assert mine.loss_by_category.keys() == theirs.loss_by_category.keys()
        for category, (total, count) in mine.loss_by_category.items():
            assert (pytest.approx(total, rel=1e-5), count) == theirs.loss_by_category[category]
        for count in ("num_trained_tokens", "num_tokens", "num_tiles"):
            assert getattr(mine, count) == getattr(theirs, count)
        assert mine.expert_load.tolist() == theirs.expert_load.tolist()
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        distance = (weight - other.weights[name]).abs()
        # A weight near zero was rounded when it was as large as a step.
        allowed = LAST_PLACES * weight.abs().clamp(min=RATE) if is_exact else RATE / 200
        assert (distance <= allowed).all(), f"{name} is off by {float(distance.max())}"


CASES = [
    *(Case(mode=mode, frozen=frozen) for mode in MODES for frozen in ((), ("language",))),
    *(Case(mode=mode, dtype=torch.bfloat16) for mode in MODES),
    Case(mode="sharded", frozen=("language",), dtype=torch.bfloat16),
    Case(mode="sharded", cuts_rows_only=True),
    Case(mode="sharded", recomputes="blocks"),
    Case(mode="sharded", recomputes="whole"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_train_as_one_does(pair: TwoRanks, case: Case) -> None:
    alone = train(ONE, case)
    first, second = pair.run(train, case)
    assert_same(first, alone, is_exact=case.is_exact)
    assert_same(second, first, is_exact=True)
    before = {name: tensor.float() for name, tensor in full_tensors(small_model(vocab_size=VOCABULARY).to(case.dtype))}
    for name, weight in first.weights.items():
        is_still = name.split(".")[0] in case.frozen or name.startswith("vision.attn_pool")
        moved = (weight - before[name]).abs().max()
        assert (moved == 0) if is_still else (moved > RATE / 100), f"{name} moved by {moved}"
    assert first.dtypes == {name: expected_dtype(name, case) for name in first.weights}
    if case.mode == "sharded" and not case.cuts_rows_only:
        assert all(first.shares[name] + second.shares[name] == 1 for name in first.shares)
        # An odd number of rows, or of a bias's places, cannot be shared evenly.
        assert all(abs(share - 0.5) < 0.01 for share in first.shares.values())


def expected_dtype(name: str, case: Case) -> torch.dtype:
    """Routers stay float32, and so does what is trained in parts; the rest has the compute type."""
    is_trained = name.split(".")[0] not in case.frozen and not name.startswith("vision.attn_pool")
    is_wide = ".gate." in name or (case.mode == "sharded" and is_trained)
    return torch.float32 if is_wide else case.dtype


def held_bytes(ranks: Ranks, stage: Stage) -> tuple[int, int]:
    """Return the bytes of a rank's bfloat16 weights, and of what the optimizer keeps beside them."""
    model = small_model(vocab_size=VOCABULARY).to(torch.bfloat16)
    freeze(model, stage)
    step = TrainStep(shard(model, "sharded", ranks, torch.bfloat16, held=held_dtype(stage)), stage, ranks)
    weights = {part.data_ptr(): part.nbytes for part in map(local, model.parameters())}
    kept = [local(one) for values in step.state_dict().values() if isinstance(values, dict) for one in values.values()]
    kept += [gradient for _, gradient in step.optimizer.gradients()]
    return sum(weights.values()), sum(part.nbytes for part in kept if part.data_ptr() not in weights)


@pytest.mark.parametrize(("is_bfloat16_optimizer", "bytes_of_each"), [(False, 16), (True, 8)])
def test_the_memory_of_a_sharded_state_is_what_the_dry_run_says(
    pair: TwoRanks, is_bfloat16_optimizer: bool, bytes_of_each: int
) -> None:
    stage = replace(Case(mode="sharded").stage, is_bfloat16_optimizer=is_bfloat16_optimizer)
    weights, kept = map(sum, zip(*pair.run(held_bytes, stage), strict=True))
    model = small_model(vocab_size=VOCABULARY)
    freeze(model, stage)
    size = size_of(model, stage, AdapterOptions(), torch.bfloat16, is_sharded=True)
    assert (weights, kept) == (size.weight_bytes, size.optimizer_bytes)
    num_frozen = size.parameters - size.num_trained
    assert weights + kept == bytes_of_each * size.num_trained + 2 * num_frozen


def state(step: TrainStep) -> dict[str, Any]:
    return {"model": step.model.state_dict(), "train_step": step.state_dict()}


def checkpoints_of(ranks: Ranks, folder: Path) -> Checkpoints:
    def block_of(tensor: Tensor) -> Block:
        return Block(local=local(tensor), origin=origin(tensor), shape=tuple(tensor.shape))

    return Checkpoints(folder, ranks=ranks, block_of=block_of)


def save_after_two_steps(ranks: Ranks, case: Case, folder: Path) -> None:
    step = start(ranks, case)
    take(step, case.steps[:2])
    checkpoints = checkpoints_of(ranks, folder)
    checkpoints.save(2, state(step), "")
    checkpoints.wait()
    checkpoints.close()
    ranks.barrier()


def go_on(ranks: Ranks, case: Case, folder: Path) -> Trained:
    step = start(ranks, case)
    loaded = checkpoints_of(ranks, folder).load(find_checkpoint(folder), state(step))
    step.load_state_dict(loaded["train_step"])
    return result(step, take(step, case.steps[2:]))


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_two_ranks_is_continued_by_one(pair: TwoRanks, mode: Mode, tmp_path: Path) -> None:
    case = Case(mode=mode, dtype=torch.bfloat16)
    pair.run(save_after_two_steps, case, tmp_path)
    assert_continued(go_on(ONE, case, tmp_path), train(ONE, case))


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_one_rank_is_continued_by_two(pair: TwoRanks, mode: Mode, tmp_path: Path) -> None:
    case = Case(mode=mode, dtype=torch.bfloat16)
    save_after_two_steps(ONE, case, tmp_path)
    alone = train(ONE, case)
    for continued in pair.run(go_on, case, tmp_path):
        assert_continued(continued, alone)


def assert_continued(continued: Trained, uninterrupted: Trained) -> None:
    """Nothing but the last bit may differ from the run that never stopped."""
    assert_same(continued, replace(uninterrupted, reports=uninterrupted.reports[2:]), is_exact=True)


def sum_in_small_buckets(ranks: Ranks) -> list[list[float]]:
    factor = ranks.rank + 1
    gradients = [torch.ones(3), torch.arange(8.0).view(2, 4).T, torch.arange(25.0), torch.tensor(5.0), torch.ones(4)]
    gradients = [gradient * factor if gradient.ndim != 2 else gradient.mul_(factor) for gradient in gradients]
    shard_module.BUCKET_ELEMENTS = 12
    sum_gradients_(gradients, ranks)
    return [gradient.flatten().tolist() for gradient in gradients]


def test_gradients_of_any_shape_and_size_are_summed_in_buckets(pair: TwoRanks) -> None:
    first, second = pair.run(sum_in_small_buckets)
    assert first == second
    assert first == [[3.0] * 3, [0, 12, 3, 15, 6, 18, 9, 21], [3.0 * i for i in range(25)], [15.0], [3.0] * 4]


def test_one_rank_alone_is_whole_whatever_was_asked_for() -> None:
    model = shard(small_model(), "sharded", ONE, torch.bfloat16)
    assert not is_sharded(model)
    assert model.dtype == torch.bfloat16


def test_another_layout_is_refused() -> None:
    with pytest.raises(UserError, match="must be replicated or sharded, got 'halved'"):
        shard(small_model(), "halved", ONE, torch.float32)  # type: ignore[arg-type]
