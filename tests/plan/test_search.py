"""Plans: what fits, what is refused, and what follows from better hardware or more even data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vl2.config import preset
from vl2.errors import UserError
from vl2.plan.cluster import DEVICES, Cluster, DataProfile
from vl2.plan.search import FixedLayout, PlannedStage, candidate_layouts, plan_stage
from vl2.plan.step_time import LayoutChoice, StepPacks, StepSimulation, StepTime, step_time
from vl2.plan.unit_sizes import largest_expert_share
from vl2.train.parallel.pipeline_split import UnitCosts
from vl2.train.recipe import SplitKind
from vl2.train.shard import check_divided
from vl2.train.stage import STAGES, Part

A100 = DEVICES["a100"]
STAGE = replace(STAGES["tiny"]["pretraining"], batch_size=64)


def cluster(num_gpus: int = 8, **changes: float) -> Cluster:
    values = {
        name: getattr(A100, name) for name in ("memory_bytes", "peak_flops", "node_bandwidth", "network_bandwidth")
    }
    return Cluster(num_gpus=num_gpus, **{**values, **changes})


def plan(num_gpus: int = 8, fixed: FixedLayout | None = None, **changes: float) -> PlannedStage:
    return plan_stage(preset("tiny"), STAGE, cluster(num_gpus, **changes), DataProfile.common(), fixed)


def test_every_layout_divides_the_ranks_and_the_experts() -> None:
    for choice in candidate_layouts(preset("base"), cluster(48), FixedLayout()):
        assert 48 % choice.pipeline == 0
        assert (48 // choice.pipeline) % choice.expert_parallel == 0
        assert 72 % choice.expert_parallel == 0


def test_no_layout_is_one_whose_experts_the_trainer_cannot_cut() -> None:
    found = list(candidate_layouts(preset("base"), cluster(336), FixedLayout(pipeline=1)))
    assert {choice.expert_parallel for choice in found} == {1}
    for choice in candidate_layouts(preset("base"), cluster(336), FixedLayout()):
        check_divided(preset("base").language_config, 336 // choice.pipeline, choice.expert_parallel)


def test_where_no_axis_of_the_experts_divides_some_ranks_hold_one_whole_and_others_none() -> None:
    base = preset("base")
    assert largest_expert_share(base, 8, 1) == pytest.approx(1 / 8)
    assert largest_expert_share(base, 336, 1) == pytest.approx(1 / 72)
    assert largest_expert_share(base, 48, 8) == pytest.approx(1 / 48)


def test_weights_are_gathered_for_images_and_for_text_and_buffers_are_kept_for_both() -> None:
    """The language model alone runs twice in the looped cut, all of it in the others."""
    config, costs = preset("tiny"), UnitCosts.by_formula(preset("tiny"), 500.0)
    images = StepPacks(tokens=np.array([4096] * 8), tiles=np.array([9] * 8))
    mixed = StepPacks(tokens=np.array([4096] * 16), tiles=np.array([9] * 8 + [0] * 8))
    ratios = {}
    # What the first rank sends on of a text alone: states of the language model, or patches of a blank tile.
    cuts: dict[SplitKind, int] = {"looped": 4096 * 1280, "contiguous": 27**2 * 1152}
    for cut, sent in cuts.items():
        choice = LayoutChoice(pipeline=2, expert_parallel=1, cut=cut)
        one, two = (
            step_time(config, cluster(4), choice, costs, work, bytes_per_parameter=16.0) for work in (images, mixed)
        )
        ratios[cut] = two.weights_s / one.weights_s
        assert two.memory_bytes - one.memory_bytes >= 4 * sent * 2, "of each of four the gradient comes back"
    assert ratios["contiguous"] == pytest.approx(2)
    assert 1.5 < ratios["looped"] < 2


def test_the_plan_fits_and_is_no_slower_than_a_layout_that_is_given() -> None:
    best = plan()
    assert best.step.memory_bytes <= 0.9 * A100.memory_bytes
    assert best.step.total_s <= plan(fixed=FixedLayout(pipeline=4, cut="encoder_first")).step.total_s


def every_step(num_gpus: int, **changes: float) -> dict[LayoutChoice, tuple[float, StepTime]]:
    """Return the lower bound and the simulated step of each layout."""
    config, on = preset("tiny"), cluster(num_gpus, **changes)
    costs = UnitCosts.by_formula(config, 500.0)
    packs = StepPacks(tokens=np.array([4096, 3000] * 16), tiles=np.array([9, 4, 0, 14] * 8))
    steps = {}
    for choice in candidate_layouts(config, on, FixedLayout()):
        simulation = StepSimulation(config, on, choice, costs, packs, 16.0)
        steps[choice] = simulation.least_s(), simulation.run()
    return steps


@pytest.mark.parametrize("changes", [{}, {"network_bandwidth": 1e9}])
def test_no_step_is_shorter_than_its_lower_bound(changes: dict[str, float]) -> None:
    steps = every_step(8, **changes)
    assert len(steps) > 50
    for choice, (least_s, step) in steps.items():
        assert least_s <= step.total_s * (1 + 1e-9), choice
    assert max(least_s / step.total_s for least_s, step in steps.values()) > 0.95, "it would exclude no layout"


@pytest.mark.parametrize("memory_bytes", [80e9, 60e9, 40e9])
def test_the_plan_is_the_fastest_of_all_layouts_that_fit(memory_bytes: float) -> None:
    """The search leaves out layouts that cannot be the fastest. Here each is planned by itself."""
    config, profile = preset("tiny"), DataProfile.common()
    on = cluster(8, memory_bytes=memory_bytes)
    totals = []
    for choice in candidate_layouts(config, on, FixedLayout()):
        if choice.recomputes_encoder:
            continue  # no FixedLayout is this one alone
        fixed = FixedLayout(
            pipeline=choice.pipeline,
            expert_parallel=choice.expert_parallel,
            tensor_parallel=choice.tensor_parallel,
            cut=choice.cut,
            recomputes=choice.recomputes,
        )
        try:
            totals.append(plan_stage(config, STAGE, on, profile, fixed).step.total_s)
        except UserError:
            continue  # it does not fit
    assert totals
    best = plan_stage(config, STAGE, on, profile)
    assert best.step.memory_bytes <= 0.9 * memory_bytes
    assert best.step.total_s <= min(totals)
    if not best.choice.recomputes_encoder:
        assert best.step.total_s == min(totals)


def test_twice_the_rate_takes_less_time_and_no_less_than_half() -> None:
    fixed = FixedLayout(pipeline=2, expert_parallel=2, cut="looped")
    slow, fast = plan(fixed=fixed), plan(fixed=fixed, peak_flops=2 * A100.peak_flops)
    assert slow.step.total_s / 2 <= fast.step.total_s < slow.step.total_s


def test_useful_work_is_never_more_than_the_kernels_reach() -> None:
    planned = plan()
    assert 0 < planned.mfu < planned.cluster.dense_efficiency
    assert planned.gpu_hours == pytest.approx(planned.days * 24 * 8)


def test_cutting_through_the_encoder_loses_less_than_one_stage_for_it() -> None:
    one_stage, by_layers = (
        plan(fixed=FixedLayout(pipeline=4, cut=cut)).step for cut in ("encoder_first", "contiguous")
    )
    assert by_layers.bubble < one_stage.bubble
    assert plan(fixed=FixedLayout(pipeline=4, cut="looped")).step.bubble < one_stage.bubble


def test_balanced_tiles_are_even() -> None:
    step = plan(fixed=FixedLayout(pipeline=1)).step
    assert step.imbalance_after <= 1.02
    assert step.imbalance_after <= step.imbalance_before
    assert plan(fixed=FixedLayout(pipeline=1, balances_tiles=False)).step.tiles_s == 0


def test_too_little_memory_is_one_line_that_says_how_much_is_needed() -> None:
    with pytest.raises(UserError, match=r"nothing fits: the smallest layout .* needs \d+ GB on a GPU"):
        plan(memory_bytes=4e9)


@pytest.mark.parametrize("frozen", [(), ("language",)])
def test_a_bfloat16_optimizer_takes_less_memory_whatever_is_frozen(frozen: tuple[Part, ...]) -> None:
    held = []
    for is_bfloat16 in (False, True):
        stage = replace(STAGE, frozen=frozen, is_bfloat16_optimizer=is_bfloat16)
        fixed = FixedLayout(pipeline=1, expert_parallel=1, recomputes=True)
        planned = plan_stage(preset("tiny"), stage, cluster(), DataProfile.common(), fixed)
        held.append(planned.step.memory_bytes)
    assert held[1] < held[0]


def test_more_ranks_than_sequences_are_refused() -> None:
    with pytest.raises(UserError, match="no layout divides 1024 GPUs"):
        plan(1024, fixed=FixedLayout(pipeline=1))


def test_a_profile_is_read_from_what_stats_prints(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    stats = {
        "total": {"images": 10, "text_tokens": 3000, "tokens": 10_000},
        "by_category": {"text": {"records": 4, "tokens": 2000}},
        "tiles_per_image": {"1": 5, "5": 5},
    }
    path.write_text(json.dumps(stats), encoding="utf-8")
    profile = DataProfile.read(path)
    assert profile == DataProfile(tiles_per_image={1: 5, 5: 5}, text_of_image=100, text_document=500, text_share=0.2)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is not the output of `vl2 data stats --json`"):
        DataProfile.read(path)


def test_measured_costs_are_written_and_read_back(tmp_path: Path) -> None:
    costs = UnitCosts.by_formula(preset("tiny"), 500.0)
    costs.write(tmp_path / "costs.json")
    assert UnitCosts.read(tmp_path / "costs.json") == costs
    (tmp_path / "other.json").write_text('{"block": [1]}', encoding="utf-8")
    with pytest.raises(UserError, match="per tile, per token"):
        UnitCosts.read(tmp_path / "other.json")


def test_the_formula_for_units_adds_up_to_that_of_the_model() -> None:
    from vl2.train.flops import ForwardCost
    from vl2.train.parallel.pipeline_split import units

    for size in ("tiny", "small", "base"):
        config = preset(size)
        cost = ForwardCost.of(config)
        by_unit = UnitCosts.by_formula(config, 600.0).forward(units(config), config, tiles=7, tokens=1000)
        whole = 7 * (cost.per_tile_vision + cost.per_tile_projector) + 1000 * (cost.per_token + cost.per_pair * 300)
        assert sum(by_unit) == pytest.approx(whole + 500 * cost.per_logit)
