"""The bfloat16 optimizer in every layout: 8 bytes a parameter, near one process, and resumed with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.parallel.layouts import (
    STEPS,
    Case,
    Trained,
    go_on,
    save_half_way,
    start,
    take,
    train,
    train_alone,
)
from tests.train.two_ranks import TwoRanks
from vl2.train.ranks import Ranks
from vl2.train.shard import local

LAYOUTS = [
    Case(mode="sharded", is_bfloat16_optimizer=True),
    Case(mode="sharded", expert_parallel=2, is_bfloat16_optimizer=True),
    Case(pipeline=2, is_bfloat16_optimizer=True),
]
ALL_AXES = Case(pipeline=2, expert_parallel=2, is_bfloat16_optimizer=True)


def held_bytes(ranks: Ranks, case: Case) -> tuple[int, int]:
    """Take a step, and return the bytes of the trained weights and their state on this rank, and of the weights."""
    step = start(ranks, case)
    take(step, STEPS[:1], case)
    trained = [local(p) for p in step.model.parameters() if p.requires_grad]
    state = [one for values in step.state_dict().values() if isinstance(values, dict) for one in values.values()]
    tensors = [*trained, *map(local, state), *(gradient for _, gradient in step.optimizer.gradients())]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert all(p.grad is None for p in step.model.parameters())
    return sum(storages.values()), sum(map(torch.numel, trained))


def assert_near(parts: list[Trained], alone: Trained) -> None:
    """The first pass is equal. Rounding of gradient sums depends on their number, so later steps are near."""
    for part in parts:
        assert part.reports[0].loss == pytest.approx(alone.reports[0].loss, rel=1e-5)
        for mine, theirs in zip(part.reports, alone.reports, strict=True):
            assert mine.loss == pytest.approx(theirs.loss, rel=0.01)
            assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=0.05)
    found = {name: tensor for part in parts for name, tensor in part.weights.items()}
    assert found.keys() == alone.weights.keys()
    gradients = {name: tensor for part in parts for name, tensor in part.gradients.items()}
    for name, tensor in alone.gradients.items():
        assert gradients[name].dtype == tensor.dtype == torch.bfloat16
        # Every sum is rounded to one of two neighbors, which are 2^-7 apart: up to three times here.
        limit = 3 * 2**-7 * float(tensor.abs().max()) + 1e-6
        assert float((tensor - gradients[name]).abs().max()) <= limit, name


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_two_processes_train_nearly_as_one(pair: TwoRanks, case: Case) -> None:
    assert_near(pair.run(train, case), train_alone(case))


def test_four_processes_train_nearly_as_one(four: TwoRanks) -> None:
    assert_near(four.run(train, ALL_AXES), train_alone(ALL_AXES))


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_weights_moments_and_gradients_take_eight_bytes(pair: TwoRanks, case: Case) -> None:
    for num_bytes, num_weights in pair.run(held_bytes, case):
        # Storages have some bytes of padding where a weight's rows cannot be divided evenly.
        assert 8 * num_weights <= num_bytes <= 8.05 * num_weights


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_a_resumed_run_has_the_same_bits(pair: TwoRanks, case: Case, tmp_path: Path) -> None:
    pair.run(save_half_way, case, tmp_path)
    for whole, resumed in zip(pair.run(train, case), pair.run(go_on, case, tmp_path), strict=True):
        assert [report.loss for report in whole.reports[2:]] == [report.loss for report in resumed.reports]
        assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in whole.weights.items())
