"""A checkpoint of any layout is continued by any other, and holds the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.model.configs import small_config
from tests.train.parallel.layouts import VOCABULARY, Case, go_on, save_half_way, train_alone
from tests.train.parallel.test_layouts import assert_same
from tests.train.two_ranks import TwoRanks
from vl2.train.checkpoint import find_checkpoint
from vl2.train.export import read_model
from vl2.train.ranks import ONE

PIPELINE = Case(pipeline=2, expert_parallel=2, balance_tiles=1)
DIVIDED = Case(mode="sharded", expert_parallel=4, tensor_parallel=2)
CONTIGUOUS = Case(pipeline=4, pipeline_cut="contiguous")
ALONE = Case()


@pytest.mark.parametrize(
    ("before", "after"), [(PIPELINE, DIVIDED), (DIVIDED, CONTIGUOUS), (ALONE, PIPELINE), (CONTIGUOUS, ALONE)]
)
def test_another_layout_goes_on(four: TwoRanks, tmp_path: Path, before: Case, after: Case) -> None:
    if before is ALONE:
        save_half_way(ONE, before, tmp_path)
    else:
        four.run(save_half_way, before, tmp_path)
    parts = [go_on(ONE, after, tmp_path)] if after is ALONE else four.run(go_on, after, tmp_path)
    alone = train_alone(ALONE)
    assert_same(parts, replace(alone, reports=alone.reports[len(ALONE.steps) // 2 :], gradients={}))


def test_a_checkpoint_of_a_pipeline_is_read_as_one_model(four: TwoRanks, tmp_path: Path) -> None:
    four.run(save_half_way, PIPELINE, tmp_path)
    half = replace(ALONE, steps=ALONE.steps[: len(ALONE.steps) // 2])
    expected = train_alone(half).weights
    model = read_model(find_checkpoint(tmp_path), small_config(vocab_size=VOCABULARY), torch.float32)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) < 1e-4, name
