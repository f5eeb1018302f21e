"""One step: it learns, moves all that it should and nothing else, and counts alike however the samples come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.configs import small_model
from tests.train.packs import join, random_pack, single_rows
from tests.train.test_stage import a_stage
from vl2.data.pack import Packed
from vl2.grid import UNTILED
from vl2.model import VL2
from vl2.model.moe import MoE
from vl2.train.balance import load_over_mean, routers
from vl2.train.parts import part_of
from vl2.train.ranks import ONE
from vl2.train.recompute import checkpoint_activations, compile_encoder
from vl2.train.shard import shard
from vl2.train.step import TrainStep

DOCUMENTS = [(12, UNTILED), (5, None), (8, (2, 1))]


def make(dtype: torch.dtype = torch.float32, size: str = "base", seed: int = 0, **stage: Any) -> TrainStep:
    model = shard(small_model(size, seed), "replicated", ONE, dtype)
    return TrainStep(model, a_stage(**stage), ONE)


def gradients(step: TrainStep) -> dict[str, Tensor]:
    return {name: gradient.clone() for name, gradient in step.optimizer.gradients()}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(float(t.abs().max()) for t in theirs.values())
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], atol=2e-5 * scale, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_each_pack_comes_to_the_device_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = make(), []
    to, states = Packed.to, step.model.packed_states

    def move(pack: Packed, device: torch.device | str) -> Packed:
        seen.append("moved")
        return to(pack, device)

    def run(*arguments: Any, **named: Any) -> Any:
        seen.append("run")
        return states(*arguments, **named)

    monkeypatch.setattr(Packed, "to", move)
    monkeypatch.setattr(step.model, "packed_states", run)
    step.accumulate([random_pack(step.model.config, DOCUMENTS, seed=seed) for seed in range(3)])
    assert seen == ["moved", "run"] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_batch_is_learnt_by_heart(dtype: torch.dtype) -> None:
    step = make(dtype, learning_rate=3e-3)
    pack = random_pack(step.model.config, DOCUMENTS)
    losses = []
    for _ in range(40):
        report = step.accumulate([pack])
        step.apply(report, 3e-3)
        losses.append(report.loss)
    assert losses[0] > 5
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    "frozen",
    [("language",), (), ("vision",), ("vision", "language"), ("projector",)],
    ids=lambda f: "+".join(f) or "none",
)
def test_frozen_parts_keep_their_bits_and_every_other_weight_moves(frozen: Any) -> None:
    step = make(frozen=frozen)
    before = {name: tensor.clone() for name, tensor in step.model.state_dict().items()}
    pack = random_pack(step.model.config, DOCUMENTS)
    for _ in range(2):
        step.apply(step.accumulate([pack]), 1e-3)
    for name, tensor in step.model.state_dict().items():
        stays = part_of(name) in frozen or "attn_pool" in name or "correction_bias" in name
        assert torch.equal(tensor, before[name]) == stays, name


def test_packs_one_after_another_give_the_gradients_of_all_in_one() -> None:
    documents = ([(12, UNTILED)], [(3, None), (9, (2, 1)), (4, None)], [(25, None)])
    step = make(balance_loss_weight=0.5)
    packs = [random_pack(step.model.config, d, seed=i, num_padding=3 * i) for i, d in enumerate(documents)]
    apart = step.accumulate(packs)
    ours = gradients(step)
    step.discard()
    together = step.accumulate([join([pack.with_length(pack.num_tokens) for pack in packs])])
    assert_same_gradients(ours, gradients(step))
    assert apart.loss == pytest.approx(together.loss, rel=1e-5)
    assert apart.balance_loss == pytest.approx(together.balance_loss, rel=1e-5)
    assert apart.grad_norm == pytest.approx(together.grad_norm, rel=1e-5)
    assert torch.equal(apart.expert_load, together.expert_load)
    assert (apart.num_tokens, apart.num_tiles) == (together.num_tokens, together.num_tiles)


def test_the_loss_is_the_mean_over_all_trained_tokens_of_the_samples_alone() -> None:
    step = make()
    pack = random_pack(step.model.config, DOCUMENTS)
    report = step.accumulate([pack])
    losses, loads = [], 0
    with torch.no_grad():
        for batch in single_rows(pack):
            output = step.model(batch)
            losses.append(F.cross_entropy(output.logits[0, :-1], batch.labels[0, 1:], reduction="none"))
            loads = loads + output.expert_load
    trained = torch.cat(losses)[torch.cat([batch.labels[0, 1:] for batch in single_rows(pack)]) != -100]
    assert report.num_trained_tokens == len(trained)
    assert report.loss == pytest.approx(float(trained.mean()), rel=1e-5)
    assert torch.equal(report.expert_load, loads)
    assert report.num_tokens == pack.num_tokens
    assert report.num_tiles == len(pack.tiles)


def test_the_loss_is_told_by_category() -> None:
    step = make()
    packs = [
        random_pack(step.model.config, [(8, None), (4, None)], category="text"),
        random_pack(step.model.config, [(6, UNTILED)], category="ocr", num_padding=4),
        random_pack(step.model.config, [(6, None)], category="something else"),
    ]
    report = step.accumulate(packs)
    assert {name: count for name, (_, count) in report.loss_by_category.items()} == {"ocr": 3, "text": 6}
    step.discard()
    alone = step.accumulate(packs[:1])
    assert report.loss_by_category["text"][0] == pytest.approx(alone.loss * 6, rel=1e-5)


def test_bfloat16_compute_stays_close_to_float32() -> None:
    reports, found = [], []
    for dtype in (torch.float32, torch.bfloat16):
        step = make(dtype)
        reports.append(step.accumulate([random_pack(step.model.config, [(20, UNTILED), (30, None)])]))
        found.append(gradients(step))
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=0.03)
    wide, narrow = (torch.cat([g.flatten() for g in f.values()]) for f in found)
    assert float(F.cosine_similarity(wide, narrow, dim=0)) > 0.95


def test_a_step_without_a_trained_token_is_taken_with_gradients_of_zeros() -> None:
    step = make()
    asked = random_pack(step.model.config, [(4, None)], num_padding=5)
    for packs in ([], [replace(asked, labels=torch.full_like(asked.labels, -100))]):
        report = step.accumulate(packs)
        assert (report.loss, report.num_trained_tokens, report.grad_norm) == (0.0, 0, 0.0)
        assert report.loss_by_category == {}
        assert not any(gradient.any() for gradient in gradients(step).values())
        step.apply(report, 1e-3)
    assert all(parameter.isfinite().all() for parameter in step.model.parameters())


def test_a_pack_without_images_trains_nothing_where_the_language_model_is_frozen() -> None:
    step = make(frozen=("language",))
    report = step.accumulate([random_pack(step.model.config, [(9, None)])])
    assert report.loss > 0
    assert report.grad_norm == 0.0


def test_a_discarded_step_leaves_everything_as_it_was() -> None:
    step, other = make(), make()
    packs = [random_pack(step.model.config, DOCUMENTS, seed=seed) for seed in (0, 1)]
    before = [p.clone() for p in step.model.parameters()]
    step.accumulate(packs[:1])
    step.discard()
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))
    for each in (step, other):
        each.apply(each.accumulate(packs[1:]), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(step.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_norms_by_part_are_those_of_the_parts_modules(size: str) -> None:
    step = make(size=size)
    report = step.accumulate([random_pack(step.model.config, DOCUMENTS)])
    assert isinstance(step.model, VL2)
    language = step.model.language
    moe = [layer.mlp for layer in language.model.layers if isinstance(layer.mlp, MoE)]
    dense = [layer.mlp for layer in language.model.layers if not isinstance(layer.mlp, MoE)]
    outer = [[layer.input_layernorm, layer.post_attention_layernorm] for layer in language.model.layers]
    modules: dict[str, list[nn.Module | None]] = {
        "vision": [step.model.siglip],
        "projector": [step.model.projector],
        "embedding": [language.model.embed_tokens],
        "attention": [layer.self_attn for layer in language.model.layers],
        "mlp": [*dense, *(one.shared_experts for one in moe)],
        "experts": [one.experts for one in moe],
        "router": [one.gate for one in moe],
        "norms": [language.model.norm, *(norm for norms in outer for norm in norms)],
        "head": [language.lm_head],
    }
    names = {id(parameter): name for name, parameter in step.model.named_parameters()}
    found = dict(step.optimizer.gradients())
    total = 0.0
    for part, members in modules.items():
        own = [names[id(p)] for module in members if module is not None for p in module.parameters()]
        if part == "projector":
            own += ["image_newline", "view_separator"]
        squares = sum(float(found[name].double().square().sum()) for name in own if name in found)
        assert report.grad_norm_by_part[part] == pytest.approx(squares**0.5, rel=1e-5), part
        assert squares > 0
        total += squares
    assert report.grad_norm == pytest.approx(total**0.5, rel=1e-5)
    assert report.grad_norm_by_part["other"] == 0


def test_gradients_are_clipped_to_the_norm_of_the_stage() -> None:
    step = make(clip_norm=0.01)
    report = step.accumulate([random_pack(step.model.config, DOCUMENTS)])
    assert report.grad_norm > 0.01
    seen = []
    update = step.optimizer.step
    step.optimizer.step = lambda rate: (seen.append(step.optimizer.grad_norm()), update(rate))  # type: ignore[method-assign]
    step.apply(report, 1e-3)
    assert seen == [pytest.approx(0.01, rel=1e-5)]


def test_a_resumed_run_has_the_same_bits() -> None:
    packs = [random_pack(small_model().config, DOCUMENTS, seed=seed) for seed in range(4)]
    whole, stopped = make(torch.bfloat16, expert_bias_step=0.01), make(torch.bfloat16, expert_bias_step=0.01)
    for pack in packs:
        whole.apply(whole.accumulate([pack]), 1e-3)
    for pack in packs[:2]:
        stopped.apply(stopped.accumulate([pack]), 1e-3)
    resumed = make(torch.bfloat16, seed=1, expert_bias_step=0.01)
    resumed.model.load_state_dict(stopped.model.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    for pack in packs[2:]:
        resumed.apply(resumed.accumulate([pack]), 1e-3)
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("encoder", ["none", "blocks", "whole"])
def test_recomputed_activations_give_the_same_gradients_and_count_the_load_once(encoder: Any) -> None:
    found = []
    for is_recomputed in (False, True):
        model = small_model()
        if is_recomputed:
            checkpoint_activations(model, encoder=encoder)
        step = TrainStep(shard(model, "replicated", ONE, torch.float32), a_stage(balance_loss_weight=0.1), ONE)
        report = step.accumulate([random_pack(model.config, DOCUMENTS)])
        found.append((report, gradients(step)))
    (plain, expected), (again, ours) = found
    assert torch.equal(plain.expert_load, again.expert_load)
    assert plain.loss == again.loss
    assert_same_gradients(ours, expected)


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_a_compiled_encoder_gives_the_same_gradients_for_any_number_of_tiles(is_recomputed: bool) -> None:
    found = []
    for is_compiled in (False, True):
        model = small_model()
        if is_compiled:
            compile_encoder(model, backend="aot_eager")  # what is traced, without a C++ compiler
        if is_recomputed:
            checkpoint_activations(model)
        step = TrainStep(shard(model, "replicated", ONE, torch.float32), a_stage(), ONE)
        report = step.accumulate([random_pack(model.config, [(5, grid)]) for grid in (UNTILED, (2, 1), (2, 2))])
        found.append((report.loss, gradients(step)))
    (plain, expected), (compiled, ours) = found
    assert compiled == pytest.approx(plain, rel=1e-6)
    assert_same_gradients(ours, expected)


def test_nothing_is_checkpointed_where_no_gradient_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    pack = random_pack(model.config, DOCUMENTS)
    with torch.no_grad():
        expected = model.states(pack).states_BSD
    checkpoint_activations(model)

    def refuse(*inputs: Any, **options: Any) -> Any:
        raise AssertionError("checkpoint was entered")

    monkeypatch.setattr("vl2.train.recompute.checkpoint", refuse)
    for is_without in (torch.no_grad, torch.inference_mode):
        with is_without():
            assert torch.equal(model.states(pack).states_BSD, expected)
    with pytest.raises(AssertionError, match="checkpoint was entered"):
        model.states(pack)


def trained_load(expert_bias_step: float) -> float:
    """Return the load of the fullest expert over the mean after 60 steps, from a router that favours two experts."""
    model = small_model("base", n_group=1, topk_group=1)
    for router in routers(model):
        assert router.e_score_correction_bias is not None
        router.e_score_correction_bias.zero_()
        router.e_score_correction_bias[:2] = 0.3
    step = TrainStep(shard(model, "replicated", ONE, torch.float32), a_stage(expert_bias_step=expert_bias_step), ONE)
    pack = random_pack(model.config, [(60, None)] * 4)
    for _ in range(60):
        report = step.accumulate([pack])
        step.apply(report, 1e-5)
    return max(load_over_mean(report.expert_load))


def test_the_moving_bias_keeps_the_load_within_twice_of_even() -> None:
    assert trained_load(0.02) < 2 < trained_load(0.0)


def test_a_load_is_measured_by_layer() -> None:
    assert load_over_mean(torch.tensor([[5, 5, 5], [9, 0, 0]])) == [1.0, 3.0]
    assert load_over_mean(torch.zeros(0, 0, dtype=torch.int64)) == []


def names_of(model: VL2) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_checkpointing_renames_no_weight() -> None:
    model = small_model()
    names = names_of(model)
    checkpoint_activations(model)
    assert names_of(model) == names
