"""Steps without a finite loss, or with a spike of it, are discarded; ordinary steps are not."""

from __future__ import annotations

import json
import math
import random

import pytest

from vl2.errors import UserError
from vl2.train.loss_spike import LossSpikeOptions, LossSpikeSkip


def trained(num_steps: int = 60, options: LossSpikeOptions | None = None) -> LossSpikeSkip:
    spikes, rng = LossSpikeSkip(options or LossSpikeOptions()), random.Random(0)
    for step in range(num_steps):
        assert spikes.judge(8 * math.exp(-step / 30) + rng.gauss(1, 0.05), rng.lognormvariate(0, 0.3), 100) is None
    return spikes


@pytest.mark.parametrize(
    ("loss", "norm", "why"),
    [
        (math.nan, 1.0, "loss is nan"),
        (math.inf, 1.0, "loss is inf"),
        (2.0, math.nan, "gradient norm is nan"),
        (500.0, 1.0, "loss 500 is far above its median"),
        (2.0, 400.0, "gradient norm 400 is far above its median"),
    ],
)
def test_what_is_out_of_order_is_discarded(loss: float, norm: float, why: str) -> None:
    spikes = trained()
    assert (spikes.judge(loss, norm, 100) or "").startswith(why)
    assert (spikes.num_discarded, spikes.num_in_a_row) == (1, 1)
    assert spikes.judge(1.5, 1.0, 100) is None
    assert (spikes.num_discarded, spikes.num_in_a_row) == (1, 0)


def test_a_discarded_step_does_not_move_the_median() -> None:
    spikes = trained()
    reasons = {spikes.judge(500.0, 1.0, 100) for _ in range(100)}
    assert len(reasons) == 1


def test_the_first_steps_cannot_be_spikes_but_must_be_numbers() -> None:
    spikes = LossSpikeSkip(LossSpikeOptions())
    assert spikes.judge(1.0, 1.0, 100) is None
    assert spikes.judge(1e6, 1e6, 100) is None
    assert spikes.judge(math.nan, 1.0, 100) == "loss is nan"


def test_equal_values_do_not_make_a_small_step_a_spike() -> None:
    spikes = LossSpikeSkip(LossSpikeOptions(spike_factor=10.0))
    for _ in range(30):
        assert spikes.judge(2.0, 1.0, 100) is None
    assert spikes.judge(2.5, 1.2, 100) is None
    assert spikes.judge(3.5, 1.2, 100) is not None


def test_a_step_without_a_token_to_train_is_discarded_and_does_not_move_the_median() -> None:
    spikes = trained(options=LossSpikeOptions(most_discarded=2))
    before = spikes.state_dict()["recent"]
    assert spikes.judge(0.0, 0.0, 0) == "data held no token to train"
    assert not spikes.must_stop
    spikes.judge(0.0, 0.5, 0)
    assert spikes.must_stop
    assert spikes.state_dict()["recent"] == before


def test_a_factor_of_0_discards_no_spike() -> None:
    assert trained(options=LossSpikeOptions(spike_factor=0.0)).judge(1e9, 1e9, 100) is None


def test_too_many_in_a_row_are_hopeless() -> None:
    spikes = trained(options=LossSpikeOptions(most_discarded=3))
    found = []
    for _ in range(3):
        spikes.judge(math.nan, 1.0, 100)
        found.append(spikes.must_stop)
    assert found == [False, False, True]


def test_a_guard_goes_on_from_its_state() -> None:
    spikes, again = trained(), LossSpikeSkip(LossSpikeOptions())
    spikes.judge(math.nan, 1.0, 100)
    again.load_state_dict(json.loads(json.dumps(spikes.state_dict())))
    assert again.state_dict() == spikes.state_dict()
    assert again.judge(500.0, 1.0, 100) == spikes.judge(500.0, 1.0, 100)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"least_steps in 2\.\.window, got 20, 5, 1 and 64"):
        LossSpikeOptions(least_steps=1)
