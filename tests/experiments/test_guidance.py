"""The auxiliary loss of the built-in model's training: where attention and positions are taught, how they add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.nano.attention_loss import AttentionLoss
from experiments.nano.guidance import Guidance
from experiments.nano.plan import Where, make_plans, read_run
from experiments.nano.position_loss import PositionLoss
from tests.experiments.test_attention_loss import PROCESSOR, RECIPE, with_evidence
from tests.model.configs import small_config
from tests.train.packs import random_pack
from vl2.errors import UserError
from vl2.model import VL2, init_weights
from vl2.train.loss import open_auxiliary_loss
from vl2.train.recipe import Recipe

FURTHER = RECIPE.with_name("further.toml")


def a_model(num_layers: int) -> VL2:
    model = VL2(small_config("base", initializer_range=0.2, num_hidden_layers=num_layers))
    init_weights(model, 0)
    return model


def test_four_layers_before_the_last_attend_and_two_of_them_know_positions() -> None:
    model = a_model(7)
    pack = with_evidence(random_pack(model.config, [(9, (2, 1)), (7, None), (12, (1, 1))]))
    parts = AttentionLoss(model, PROCESSOR, (2, 3, 4, 5)), PositionLoss(model, (2, 3))
    guidance = Guidance(model, PROCESSOR)
    model.states(pack)
    attention, position = (part.take(pack) for part in parts)
    assert guidance.count(pack) == sum(map(len, pack.notes)) == 8
    torch.testing.assert_close(guidance.take(pack), attention + 8 * position)


def test_a_model_of_few_layers_is_refused() -> None:
    with pytest.raises(UserError, match="more than 4 decoder layers, got 4"):
        Guidance(a_model(4), PROCESSOR)


@pytest.mark.parametrize("path", [RECIPE, FURTHER])
def test_the_recipes_name_it(path: Path, tmp_path: Path) -> None:
    plans = make_plans(read_run(path), 2, Where(inputs=tmp_path, to=tmp_path))
    recipes = [plan.recipe for plan in plans if isinstance(plan.recipe, Recipe)]
    named = [recipe.auxiliary_loss for recipe in recipes if recipe.auxiliary_loss.function]
    assert named
    model = a_model(6)
    for options in named:
        assert isinstance(open_auxiliary_loss(options, model, PROCESSOR), Guidance)
