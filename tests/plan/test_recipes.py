"""The layouts of the recipes are those that the planner advises for the paper's clusters."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl2.config import preset
from vl2.plan.cluster import DEVICES, Cluster, DataProfile
from vl2.plan.search import PAPER, plan_stage
from vl2.plan.step_time import LayoutChoice
from vl2.train.parallel.parallelize import check_experts, check_ranks
from vl2.train.recipe import EngineOptions, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
STAGES = ("alignment", "pretraining", "fine-tuning")


def layout_of(engine: EngineOptions) -> LayoutChoice:
    return LayoutChoice(
        pipeline=engine.pipeline,
        expert_parallel=engine.expert_parallel,
        tensor_parallel=engine.tensor_parallel,
        cut=engine.pipeline_cut if engine.pipeline > 1 else "contiguous",
        balances_tiles=engine.balance_tiles > 0,
        recomputes=engine.activation_checkpointing,
        recomputes_encoder=engine.recomputed_encoder != "none",
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", list(PAPER))
def test_a_recipe_has_the_layout_that_the_planner_advises(size: str, stage: str) -> None:
    recipe, num_gpus = read_recipe(RECIPES / size / f"{stage}.toml"), PAPER[size][0]
    device = DEVICES["a100"]
    cluster = Cluster(
        num_gpus=num_gpus,
        memory_bytes=device.memory_bytes,
        peak_flops=device.peak_flops,
        node_bandwidth=device.node_bandwidth,
        network_bandwidth=device.network_bandwidth,
    )
    check_ranks(recipe, num_gpus)
    check_experts(preset(size), recipe, num_gpus)
    planned = plan_stage(preset(size), recipe.stage, cluster, DataProfile.common())
    assert layout_of(recipe.engine) == planned.choice
