"""Stages: the paper's numbers, schedules at their corners, and what a stage refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.model.configs import small_model
from vl2.errors import UserError
from vl2.model import VL2
from vl2.train.balance import check_balance
from vl2.train.parts import freeze, parameter_groups, part_of
from vl2.train.stage import STAGES, Stage, learning_rate, total_steps

PAPER: dict[tuple[str, str], dict[str, Any]] = {
    ("tiny", "alignment"): {"learning_rate": 5.4e-4, "num_tokens": 2.0e9, "batch_size": 256},
    ("tiny", "pretraining"): {"learning_rate": 5.4e-4, "num_tokens": 798.5e9, "batch_size": 2304},
    ("tiny", "fine-tuning"): {"learning_rate": 3.0e-5, "num_tokens": 19.5e9, "batch_size": 64},
    ("small", "alignment"): {"learning_rate": 4.2e-4, "num_tokens": 2.0e9, "batch_size": 256},
    ("small", "pretraining"): {"learning_rate": 4.2e-4, "num_tokens": 808.9e9, "batch_size": 2304},
    ("small", "fine-tuning"): {"learning_rate": 1.4e-5, "num_tokens": 20.0e9, "batch_size": 64},
    ("base", "alignment"): {"learning_rate": 4.5e-4, "num_tokens": 2.0e9, "batch_size": 256},
    ("base", "pretraining"): {"learning_rate": 4.5e-4, "num_tokens": 796.5e9, "batch_size": 3360},
    ("base", "fine-tuning"): {"learning_rate": 2.0e-5, "num_tokens": 19.5e9, "batch_size": 64},
}


def a_stage(**values: Any) -> Stage:
    given = {
        "name": "own", "learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0, "balance_loss_weight": 0.0,
        "num_steps": 100, "batch_size": 2, "is_packed": True, "mask_prompt": True,
    }  # fmt: skip
    return Stage(**{**given, **values})


@pytest.mark.parametrize(("size", "name"), list(PAPER))
def test_a_stage_has_the_papers_values(size: str, name: str) -> None:
    stage = STAGES[size][name]
    assert {key: getattr(stage, key) for key in PAPER[size, name]} == PAPER[size, name]
    assert stage.name == name
    assert dict(stage.rate_multipliers) == {"vision": 0.1}
    assert stage.frozen == (("language",) if name == "alignment" else ())
    assert stage.schedule == {"alignment": "cosine", "pretraining": "step", "fine-tuning": "constant"}[name]
    assert (stage.weight_decay, stage.clip_norm, stage.betas, stage.seq_len) == (0.1, 1.0, (0.9, 0.95), 4096)
    assert stage.is_bfloat16_optimizer is (size == "base")
    assert stage.balance_loss_weight == (0.0001 if size == "base" else 0.001)
    assert stage.expert_bias_step == (0.001 if (size, name) == ("base", "pretraining") else 0.0)
    assert stage.is_packed is (name != "alignment")
    assert stage.mask_prompt is (name == "fine-tuning")


def test_every_size_and_stage_is_in_the_table() -> None:
    assert [(size, name) for size, stages in STAGES.items() for name in stages] == list(PAPER)


def test_packed_stages_have_the_steps_that_their_tokens_make() -> None:
    steps = {
        size: [total_steps(stages[name]) for name in ("pretraining", "fine-tuning")] for size, stages in STAGES.items()
    }
    assert steps == {"tiny": [84612, 74387], "small": [85714, 76294], "base": [57874, 74387]}
    assert total_steps(STAGES["tiny"]["alignment"], 1670) == 4678


def test_the_cosine_warms_up_peaks_and_ends_at_its_floor() -> None:
    stage = a_stage(schedule="cosine", warmup_steps=10, final_rate_ratio=0.1)
    rates = [learning_rate(stage, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == max(rates) == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4)


def test_the_step_schedule_divides_by_the_root_of_ten_at_half_and_at_three_quarters() -> None:
    stage = a_stage(schedule="step")
    rates = [learning_rate(stage, step, 100) for step in range(100)]
    assert rates[0] == rates[49] == 1e-3
    assert rates[50] == rates[74] == pytest.approx(1e-3 / math.sqrt(10))
    assert rates[75] == rates[99] == pytest.approx(1e-4)


def test_a_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    for schedule in ("cosine", "step", "constant"):
        stage = a_stage(schedule=schedule, warmup_steps=50)
        assert [learning_rate(stage, step, 2) for step in range(2)] == pytest.approx([2e-5, 4e-5])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"frozen": ("vision", "projector", "language")}, "nothing would be trained"),
        ({"frozen": ("vision",), "rate_multipliers": {"vision": 0.1}}, "vision is frozen"),
        ({"frozen": ("encoder",)}, "got 'encoder'"),
        ({"rate_multipliers": {"head": 0.1}}, "got 'head'"),
        ({"schedule": "linear"}, "got 'linear'"),
        ({"num_tokens": 10}, "either num_steps or num_tokens"),
        ({"num_steps": None}, "either num_steps or num_tokens"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"rate_multipliers": {"vision": float("nan")}}, "rate_multipliers.vision"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"final_rate_ratio": 1.5}, "final_rate_ratio"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"frozen": ("language",), "expert_bias_step": 0.1}, "expert_bias_step must be 0"),
    ],
)
def test_a_value_that_cannot_work_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        a_stage(**values)


def test_a_bias_step_for_a_model_without_bias_is_refused() -> None:
    check_balance(small_model("base"), a_stage(expert_bias_step=0.001))
    with pytest.raises(UserError, match="noaux_tc"):
        check_balance(small_model("small"), a_stage(expert_bias_step=0.001))


def trained_names(model: VL2, stage: Stage) -> set[str]:
    freeze(model, stage)
    return {name for group in parameter_groups(model, stage) for name in group.names}


def test_every_parameter_but_the_attention_pool_has_a_part_and_a_group() -> None:
    model = small_model("base")
    names = {name for name, _ in model.named_parameters()}
    assert {part_of(name) for name in names} == {"vision", "projector", "language"}
    assert part_of("image_newline") == part_of("view_separator") == "projector"
    assert names - trained_names(model, a_stage()) == {n for n in names if n.startswith("vision.attn_pool.")}


def test_freezing_leaves_the_other_parts_and_never_thaws() -> None:
    model = small_model("base")
    model.projector.requires_grad_(False)
    names = trained_names(model, a_stage(frozen=("language",)))
    assert {part_of(name) for name in names} == {"vision", "projector"}
    assert not [name for name in names if name.startswith("projector.")]


def test_only_matrices_decay_and_parts_have_their_rates() -> None:
    model = small_model("base")
    stage = a_stage(rate_multipliers={"vision": 0.1})
    parameters = dict(model.named_parameters())
    for group in parameter_groups(model, stage):
        for name, parameter in zip(group.names, group.parameters, strict=True):
            assert parameter is parameters[name]
            is_matrix = parameter.ndim > 1 and name != "vision.pos_embed"
            assert group.weight_decay == (0.1 if is_matrix else 0.0), name
            assert group.rate_multiplier == (0.1 if name.startswith("vision.") else 1.0), name
