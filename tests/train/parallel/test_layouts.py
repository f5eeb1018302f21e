"""Experts, layers and tiles on several processes train as one process does: losses, gradients, weights, loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.model.configs import small_config
from tests.train.parallel.layouts import RATE, STEPS, Case, Trained, train, train_alone
from tests.train.two_ranks import TwoRanks
from vl2.train.parallel.pipeline_split import split_pipeline, units
from vl2.train.parallel.schedules import MicroBatchShape, Pipelines
from vl2.train.ranks import ONE


def assert_even(parts: list[Trained], case: Case) -> None:
    """Tiles are as even as the case asks for, and the reports say so."""
    for report in parts[0].reports:
        assert 1 <= report.tile_imbalance_balanced <= report.tile_imbalance
    images = parts[0].reports[0]
    assert (images.tile_imbalance_balanced < images.tile_imbalance) == (case.balance_tiles > 0)


def assert_same(parts: list[Trained], alone: Trained) -> None:
    for part in parts:
        for mine, theirs in zip(part.reports, alone.reports, strict=True):
            assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
            assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
            # A small part's norm is a difference of large ones, so it is held against the norm of all.
            limit = 1e-5 * theirs.grad_norm
            assert mine.grad_norm_by_part == pytest.approx(theirs.grad_norm_by_part, rel=1e-5, abs=limit)
            assert mine.balance_loss == pytest.approx(theirs.balance_loss, rel=1e-5)
            assert mine.loss_by_category.keys() == theirs.loss_by_category.keys()
            for name in ("num_trained_tokens", "num_tokens", "num_tiles"):
                assert getattr(mine, name) == getattr(theirs, name)
            assert mine.expert_load.tolist() == theirs.expert_load.tolist()
    for what in ("gradients", "weights"):
        found = {name: tensor for part in parts for name, tensor in getattr(part, what).items()}
        expected = getattr(alone, what)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            limit = 1e-5 * max(1.0, float(tensor.abs().max())) if what == "gradients" else RATE / 200
            furthest = float((tensor - found[name]).abs().max())
            assert furthest <= limit, f"{what} of {name} are off by {furthest}"


BALANCED = [
    Case(balance_tiles=1),
    Case(balance_tiles=2, frozen=("language",)),
    Case(mode="sharded", balance_tiles=1),
    Case(mode="sharded", balance_tiles=3, frozen=("language",)),
]
EXPERTS = [
    Case(mode="sharded", expert_parallel=2),
    Case(mode="sharded", expert_parallel=2, frozen=("language",), balance_tiles=1),
]


PIPELINES = [
    Case(pipeline=2),
    Case(pipeline=2, frozen=("language",)),
    Case(pipeline=2, frozen=("vision", "projector")),
    Case(pipeline=2, pipeline_cut="contiguous"),
    Case(pipeline=2, pipeline_cut="encoder_first", frozen=("vision", "projector")),  # the first rank trains nothing
    Case(pipeline=2, pipeline_cut="encoder_first", size="tiny"),
]
MIXED = [
    Case(pipeline=2, balance_tiles=1),
    Case(pipeline=2, expert_parallel=2),
    Case(pipeline=2, expert_parallel=2, balance_tiles=1, frozen=("language",)),
    Case(pipeline=2, pipeline_cut="contiguous", balance_tiles=1),
]


ZERO_BUBBLE = [
    Case(pipeline=2, pipeline_schedule="zero_bubble"),
    Case(pipeline=2, pipeline_schedule="zero_bubble", frozen=("vision", "projector")),  # falls back to 1F1B
]
ZERO_BUBBLE_OF_FOUR = [
    Case(pipeline=2, pipeline_schedule="zero_bubble", pipeline_cut="contiguous", tensor_parallel=2, expert_parallel=2),
]


# Two processes have one tensor-parallel group, four have several, or one with all kinds of division.
TENSOR = [
    Case(mode="sharded", tensor_parallel=2),
    Case(mode="sharded", tensor_parallel=2, size="tiny", frozen=("language",)),
    Case(mode="sharded", tensor_parallel=2, expert_parallel=2),
]
TENSOR_OF_FOUR = [
    Case(mode="sharded", tensor_parallel=2, balance_tiles=1),
    Case(mode="sharded", tensor_parallel=2, expert_parallel=4),
    Case(pipeline=2, tensor_parallel=2, expert_parallel=2),
    Case(pipeline=2, pipeline_cut="contiguous", tensor_parallel=2, size="tiny"),
]


@pytest.mark.parametrize("case", [*BALANCED, *EXPERTS, *PIPELINES, *ZERO_BUBBLE, *TENSOR], ids=str)
def test_two_processes_train_as_one(pair: TwoRanks, case: Case) -> None:
    parts = pair.run(train, case)
    assert_same(parts, train_alone(case))
    if case.pipeline == 1:
        assert_even(parts, case)


@pytest.mark.parametrize("case", [BALANCED[2], EXPERTS[0], MIXED[0]], ids=str)
def test_in_bfloat16_the_first_loss_is_near(pair: TwoRanks, case: Case) -> None:
    """Rounding may send a token to another expert, so no more than that can be held equal."""
    case = replace(case, dtype=torch.bfloat16, steps=STEPS[:1])
    alone = train_alone(case).reports[0]
    for part in pair.run(train, case):
        assert part.reports[0].loss == pytest.approx(alone.loss, rel=0.02)
        assert part.reports[0].grad_norm == pytest.approx(alone.grad_norm, rel=0.2)


FOUR = [BALANCED[3], EXPERTS[1], Case(mode="sharded", expert_parallel=4), *MIXED, *ZERO_BUBBLE_OF_FOUR, *TENSOR_OF_FOUR]


@pytest.mark.parametrize("case", FOUR, ids=str)
def test_four_processes_train_as_one(four: TwoRanks, case: Case) -> None:
    assert_same(four.run(train, case), train_alone(case))


def test_only_the_last_shapes_keep_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[MicroBatchShape] = []

    def build(_: Pipelines, shape: MicroBatchShape, carries_gradient: Sequence[bool]) -> Any:
        built.append(shape)
        return SimpleNamespace(step=lambda **_: None)

    monkeypatch.setattr(Pipelines, "_build", build)
    images, text, more_text = (
        MicroBatchShape(num_batches=2, num_tiles=tiles, num_tokens=tokens, is_trained=True)
        for tiles, tokens in ((4, 64), (0, 64), (0, 128))
    )
    config = small_config()
    split = split_pipeline("looped", units(config), [1.0] * len(units(config)), 2)
    pipelines = Pipelines(split, {}, ONE, torch.float32)
    for shape in (images, text, images, text, images, more_text, images, text):
        pipelines.run(shape, [True] * 4)
    assert built == [images, text, more_text, text], "images come in every step and stay"
