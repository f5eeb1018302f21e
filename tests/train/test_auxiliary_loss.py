"""A loss of one's own: named by import path, told of samples by the loader, averaged over its terms, weighted."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.data.loader_case import make_loader
from tests.model.configs import small_model
from tests.train.packs import random_pack
from tests.train.test_stage import a_stage
from tests.train.test_step import gradients
from vl2.data.pack import Packed
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.model import VL2
from vl2.process.sample import Sample
from vl2.train.loss import open_auxiliary_loss
from vl2.train.ranks import ONE
from vl2.train.recipe import AuxiliaryLossOptions
from vl2.train.shard import shard
from vl2.train.step import TrainStep


class OutputWeight:
    """Two terms a document, each the sum of the weights of the output layer."""

    def __init__(self, model: VL2, processor: Any) -> None:
        self.weight = model.language.lm_head.weight

    def note(self, record: Record, sample: Sample) -> Any:
        return record.id, len(sample)

    def count(self, pack: Packed) -> int:
        return 2 * len(pack.names)

    def take(self, pack: Packed) -> Tensor:
        return 2 * len(pack.names) * self.weight.sum()


def options(name: str, weight: float = 1.0) -> AuxiliaryLossOptions:
    return AuxiliaryLossOptions(function=f"tests.train.test_auxiliary_loss:{name}", weight=weight)


def test_its_mean_over_all_packs_is_added_with_its_weight() -> None:
    found = []
    for weight in (0.0, 0.5):
        model = shard(small_model("base", 0), "replicated", ONE, torch.float32)
        loss = open_auxiliary_loss(options("OutputWeight"), model, None)  # type: ignore[arg-type]
        step = TrainStep(model, a_stage(), ONE, auxiliary_loss=loss, auxiliary_weight=weight)
        lengths = [[(9, None), (7, None)], [(12, None)]]
        report = step.accumulate([random_pack(model.config, documents) for documents in lengths])
        assert report.auxiliary_loss == pytest.approx(float(model.language.lm_head.weight.sum()), rel=1e-5)
        found.append(gradients(step)["language.lm_head.weight"])
    torch.testing.assert_close(found[1], found[0] + 0.5)


def test_the_loader_notes_what_it_asks_of_each_sample() -> None:
    (plain,) = islice(make_loader(), 1)
    (noted,) = islice(make_loader(note=lambda record, sample: (record.id, len(sample))), 1)
    for before, after in zip(plain.packs, noted.packs, strict=True):
        assert before.notes == ()
        lengths = after.cu_seqlens.diff().tolist()
        assert after.notes == tuple(zip(after.names, lengths, strict=False))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("tests.train.no_such_module:Loss", "cannot import 'tests.train.no_such_module:Loss': No module named"),
        ("tests.train.test_auxiliary_loss:NoSuchLoss", "has no attribute 'NoSuchLoss'"),
        ("no module:Loss", "cannot import 'no module:Loss'"),
        ("OutputWeight", "it must be MODULE:NAME"),
    ],
)
def test_what_cannot_be_imported_is_an_error_of_one_line(function: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_auxiliary_loss(AuxiliaryLossOptions(function=function), small_model("base", 0), None)  # type: ignore[arg-type]
    assert str(caught.value).startswith("auxiliary_loss.function: cannot import")
    assert "\n" not in str(caught.value)


def test_whole_models_are_needed_and_a_weight_above_0() -> None:
    with pytest.raises(UserError, match="an auxiliary loss needs whole models"):
        open_auxiliary_loss(options("OutputWeight"), torch.nn.Linear(2, 2), None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"auxiliary_loss.weight must be positive, got 0"):
        options("OutputWeight", weight=0.0)


def test_without_a_function_there_is_none() -> None:
    assert open_auxiliary_loss(AuxiliaryLossOptions(), small_model("base", 0), None) is None  # type: ignore[arg-type]
