"""Layouts that cannot be are refused in one line, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.model.configs import small_config, small_model
from tests.train.toy import toy_recipe
from vl2.config import preset
from vl2.errors import RankLost, UserError
from vl2.model.moe import Experts
from vl2.train.parallel.parallelize import check_experts, check_ranks
from vl2.train.parallel.rank_layout import make_layout
from vl2.train.parallel.tensor_parallel import check_tensor_parallel
from vl2.train.ranks import ONE, why_lost
from vl2.train.recipe import EngineOptions
from vl2.train.run import Run, train
from vl2.train.shard import expert_matrices


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"pipeline": 2}, 'engine.pipeline needs engine.parallel = "sharded"'),
        ({"expert_parallel": 2}, 'engine.expert_parallel needs engine.parallel = "sharded"'),
        ({"pipeline": 0}, "engine.pipeline must be at least 1, got 0"),
        ({"balance_tiles": -1}, "engine.balance_tiles must not be negative, got -1"),
        ({"timeout_s": 0.0}, "engine.timeout_s must be positive, got 0"),
        ({"pipeline_schedule": "zero_bubble", "activation_checkpointing": True}, "engine.pipeline_schedule = "),
        ({"parallel": "sharded", "pipeline": 2, "encoder_recompute": "whole"}, "engine.pipeline cuts through the"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        EngineOptions(**engine)
    assert str(refused.value).startswith(message)


def test_a_number_of_ranks_that_the_layout_does_not_divide_is_refused(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, tmp_path, tmp_path / "run")
    recipe = replace(recipe, engine=EngineOptions(parallel="sharded", pipeline=4, expert_parallel=8))
    check_ranks(recipe, 64)
    with pytest.raises(UserError, match="need a multiple of 32 ranks, there are 24"):
        check_ranks(recipe, 24)
    with pytest.raises(UserError, match=r"engine\.pipeline must divide the number of ranks: 2 does not divide 1"):
        make_layout(ONE, pipeline=2)


def test_experts_that_the_ranks_cannot_share_are_refused_by_their_sizes(tmp_path: Path) -> None:
    recipe, config = toy_recipe(tmp_path, tmp_path, tmp_path / "run"), preset("base")
    for expert_parallel, num_ranks, message in (
        (
            8,
            336,
            r"an expert's matrices of 3072 x 2560 cannot be sharded over 42 ranks: choose a larger engine\.expert",
        ),
        (16, 336, r"engine\.expert_parallel must divide the number of experts: 16 does not divide 72"),
    ):
        engine = EngineOptions(parallel="sharded", expert_parallel=expert_parallel)
        with pytest.raises(UserError, match=message):
            check_experts(config, replace(recipe, engine=engine), num_ranks)
    # Each stage of a pipeline has its own experts: 6 ranks hold the same ones.
    engine = EngineOptions(parallel="sharded", expert_parallel=8, pipeline=7)
    check_experts(config, replace(recipe, engine=engine), 336)


def test_the_sizes_of_experts_are_those_of_the_model() -> None:
    model = small_model()
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    shapes = tuple(tuple(parameter.shape[1:]) for parameter in (experts.gate_up_proj, experts.down_proj))
    assert expert_matrices(model.config.language_config) == shapes


def test_experts_and_layers_are_divided_only_where_weights_are_cut() -> None:
    for name in ("expert_parallel", "tensor_parallel"):
        with pytest.raises(UserError, match=rf'engine.{name} needs engine.parallel = "sharded"'):
            EngineOptions(**{name: 2})


@pytest.mark.parametrize(
    ("size", "num_data", "changes", "message"),
    [
        (3, 1, {}, "must divide the 4 attention heads, got 3"),
        (2, 1, {"attention_bias": True}, "needs attention without biases"),
        (2, 1, {"intermediate_size": 113}, "must divide the 113 hidden units of a dense layer, got 2"),
        (2, 7, {}, "leaves 7 ranks with different packs, which cannot shard weights with .* inputs"),
    ],
)
def test_layers_that_cannot_be_divided_are_refused(
    size: int, num_data: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_tensor_parallel(small_config(**changes).language_config, size, num_data)


def test_what_an_error_says_of_other_ranks_is_found_below_others() -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
    late = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 3000ms for recv operation")
    outer = RuntimeError("stage 1 failed to run forward")
    outer.__cause__ = late
    assert (why_lost(closed) or "").startswith("the connection to another rank has broken")
    assert (why_lost(outer) or "").startswith("another rank has not answered in time")
    assert why_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_lost_rank_is_an_error_to_a_program_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: Any, **__: Any) -> Run:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")

    monkeypatch.setattr(Run, "prepare", lose)
    with pytest.raises(RankLost, match=r"^rank 0 of 1: the connection to another rank has broken: .*; there is no che"):
        train(toy_recipe(tmp_path, tmp_path, tmp_path / "run"))
