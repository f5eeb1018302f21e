"""The attention loss: it is the share of attention that falls on the evidence, and teaches that share to grow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.model.configs import small_model
from tests.train.packs import join, random_pack
from tests.train.test_stage import a_stage
from tests.train.test_step import assert_same_gradients, gradients
from vl2.data.evidence import Evidence
from vl2.data.packed import Packed
from vl2.errors import UserError
from vl2.grid import UNTILED
from vl2.model import VL2
from vl2.train.attention_loss import HEAD, AttentionLoss
from vl2.train.ranks import ONE
from vl2.train.recompute import checkpoint_activations
from vl2.train.shard import shard
from vl2.train.step import TrainStep

LAYERS = (1, 2)


def make(size: str = "base", **stage: Any) -> TrainStep:
    model = shard(small_model(size, 0), "replicated", ONE, torch.float32)
    return TrainStep(model, a_stage(attention_loss_weight=1.0, attention_loss_layers=LAYERS, **stage), ONE)


def with_evidence(pack: Packed) -> Packed:
    """Let the last four tokens of every document with an image rest on two groups of its visual tokens."""
    rests = []
    for start, end in zip(pack.cu_seqlens.tolist(), pack.cu_seqlens.tolist()[1:], strict=False):
        slots = [place for place in range(start, end) if pack.image_mask[place]]
        if slots:
            rests += [(token, [slots[1:4], slots[6:7]]) for token in range(end - 4, end)]
    return replace(pack, evidence=Evidence.of(rests))


def a_pack(step: TrainStep, seed: int = 0) -> Packed:
    return with_evidence(random_pack(step.model.config, [(9, UNTILED), (7, None), (12, (2, 1))], seed=seed))


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_it_is_the_divergence_of_attention_from_even_shares(size: str) -> None:
    step = make(size)
    pack, attention = a_pack(step), step.model.language.model.layers[LAYERS[0]].self_attn
    watched = AttentionLoss(step.model, [LAYERS[0]])
    shares: list[torch.Tensor] = []
    attend = attention.attend

    def with_values_that_tell(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        # Values that are 1 for a group make of the head's output the share of attention on it.
        for group, row in enumerate(pack.evidence.row_g.tolist()):
            told = torch.zeros_like(v)
            told[:, :, pack.evidence.pairs_m2[pack.evidence.pairs_m2[:, 0] == group, 1]] = 1.0
            shares.append(attend(q, k, told, mask, scale)[0, HEAD, pack.evidence.token_n[row], 0])
        return attend(q, k, v, mask, scale)

    attention.attend = with_values_that_tell
    step.model.states(pack)
    loss = watched.take(pack)
    expected = (0.5 * (0.5 / torch.stack(shares)).log()).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_attention_learns_where_to_look() -> None:
    step = make(learning_rate=3e-3)
    pack = a_pack(step)
    losses = []
    for _ in range(40):
        report = step.accumulate([pack])
        step.apply(report, 3e-3)
        losses.append(report.attention_loss)
    assert losses[0] > 1.5
    assert losses[-1] < 0.2


def test_packs_one_after_another_give_the_gradients_of_all_in_one() -> None:
    step = make()
    packs = [a_pack(step, seed=seed) for seed in range(2)]
    apart = step.accumulate(packs)
    ours = gradients(step)
    step.discard()
    joined = with_evidence(join(packs))
    assert torch.equal(joined.evidence.token_n[:8], packs[0].evidence.token_n)
    together = step.accumulate([joined])
    assert_same_gradients(ours, gradients(step))
    assert apart.attention_loss == pytest.approx(together.attention_loss, rel=1e-5)


def test_without_evidence_nothing_is_added() -> None:
    step, plain = make(), TrainStep(shard(small_model("base", 0), "replicated", ONE, torch.float32), a_stage(), ONE)
    pack = random_pack(step.model.config, [(9, UNTILED), (7, None)])
    report = step.accumulate([pack])
    assert report.attention_loss == 0
    plain.accumulate([pack])
    assert_same_gradients(gradients(step), gradients(plain))


def test_activations_that_are_computed_again_change_nothing() -> None:
    step, again = make(), make()
    assert isinstance(again.model, VL2)
    checkpoint_activations(again.model)
    pack = a_pack(step)
    assert step.accumulate([pack]).attention_loss == again.accumulate([pack]).attention_loss
    assert_same_gradients(gradients(step), gradients(again))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"attention_loss_layers must be in 0\.\.\d+, got 40"):
        AttentionLoss(small_model("base", 0), [40])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"attention_loss_weight": 0.5}, "need each other"),
        ({"attention_loss_layers": (1,)}, "need each other"),
        ({"attention_loss_weight": -1.0, "attention_loss_layers": (1,)}, "need each other"),
        ({"attention_loss_weight": 0.5, "attention_loss_layers": (1,), "frozen": ("language",)}, "must be 0"),
    ],
)
def test_a_stage_that_cannot_teach_attention_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        a_stage(**values)
