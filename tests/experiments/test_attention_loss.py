"""The attention loss: it is the share of attention that falls on the evidence, and teaches that share to grow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import vl2
from experiments.nano.attention_loss import HEAD, AttentionLoss, evidence_of
from experiments.nano.evidence import Evidence
from tests.model.configs import small_model
from tests.train.packs import join, random_pack
from tests.train.test_stage import a_stage
from tests.train.test_step import assert_same_gradients, gradients
from vl2.data.pack import Packed
from vl2.errors import UserError
from vl2.grid import UNTILED
from vl2.model import VL2, attention
from vl2.process.processor import Processor
from vl2.train.ranks import ONE
from vl2.train.recompute import checkpoint_activations
from vl2.train.shard import shard
from vl2.train.step import TrainStep

LAYERS = (1, 2)
PROCESSOR = Processor.from_folder(Path(vl2.__file__).parent / "nano")
RECIPE = Path(__file__).parents[2] / "experiments/nano/recipe.toml"


def make(size: str = "base", **stage: Any) -> TrainStep:
    model = shard(small_model(size, 0), "replicated", ONE, torch.float32)
    return TrainStep(model, a_stage(**stage), ONE, auxiliary_loss=AttentionLoss(model, PROCESSOR, LAYERS))


def with_evidence(pack: Packed) -> Packed:
    """Let the last four tokens of every document with an image rest on two groups of its visual tokens."""
    notes = []
    for start, end in pairwise(pack.cu_seqlens.tolist()[: len(pack.names) + 1]):
        slots = [place - start for place in range(start, end) if pack.image_mask[place]]
        last = range(end - start - 4, end - start)
        notes.append(Evidence.of([(token, [slots[1:4], slots[6:7]]) for token in last] if slots else []))
    return replace(pack, notes=tuple(notes))


def a_pack(step: TrainStep, seed: int = 0) -> Packed:
    return with_evidence(random_pack(step.model.config, [(9, UNTILED), (7, None), (12, (2, 1))], seed=seed))


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_it_is_the_divergence_of_attention_from_even_shares(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(size)
    pack, layer = a_pack(step), step.model.language.model.layers[LAYERS[0]]
    watched, evidence = AttentionLoss(step.model, PROCESSOR, [LAYERS[0]]), evidence_of(pack)
    shares: list[torch.Tensor] = []
    attend, is_inside = attention.attend, [False]
    layer.self_attn.register_forward_pre_hook(lambda *_: is_inside.append(True))
    layer.self_attn.register_forward_hook(lambda *_: is_inside.append(False))

    def with_values_that_tell(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        # Values that are 1 for a group make of the head's output the share of attention on it.
        for group, row in enumerate(evidence.row_g.tolist() if is_inside[-1] else ()):
            told = torch.zeros_like(v)
            told[:, :, evidence.pairs_m2[evidence.pairs_m2[:, 0] == group, 1]] = 1.0
            shares.append(attend(q, k, told, mask, scale)[0, HEAD, evidence.token_n[row], 0])
        return attend(q, k, v, mask, scale)

    monkeypatch.setattr(attention, "attend", with_values_that_tell)
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
        losses.append(report.auxiliary_loss)
    assert losses[0] > 1.5
    assert losses[-1] < 0.2


def test_packs_one_after_another_give_the_gradients_of_all_in_one() -> None:
    step = make()
    packs = [a_pack(step, seed=seed) for seed in range(2)]
    apart = step.accumulate(packs)
    ours = gradients(step)
    step.discard()
    joined = with_evidence(join(packs))
    assert torch.equal(evidence_of(joined).token_n[:8], evidence_of(packs[0]).token_n)
    together = step.accumulate([joined])
    assert_same_gradients(ours, gradients(step))
    assert apart.auxiliary_loss == pytest.approx(together.auxiliary_loss, rel=1e-5)


def test_without_evidence_nothing_is_added() -> None:
    step, plain = make(), TrainStep(shard(small_model("base", 0), "replicated", ONE, torch.float32), a_stage(), ONE)
    pack = random_pack(step.model.config, [(9, UNTILED), (7, None)])
    report = step.accumulate([pack])
    assert report.auxiliary_loss == 0
    plain.accumulate([pack])
    assert_same_gradients(gradients(step), gradients(plain))


def test_activations_that_are_computed_again_change_nothing() -> None:
    step, again = make(), make()
    assert isinstance(again.model, VL2)
    checkpoint_activations(again.model)
    pack = a_pack(step)
    assert step.accumulate([pack]).auxiliary_loss == again.accumulate([pack]).auxiliary_loss
    assert_same_gradients(gradients(step), gradients(again))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"layers of the attention loss must be in 0\.\.\d+, got 40"):
        AttentionLoss(small_model("base", 0), PROCESSOR, [40])


def test_a_frozen_language_model_is_refused() -> None:
    model = small_model("base", 0)
    model.language.requires_grad_(False)
    with pytest.raises(UserError, match="and that is frozen"):
        AttentionLoss(model, PROCESSOR, LAYERS)
