"""Adapters on the three structures: multi-head and latent with softmax routing, latent with sigmoid and bias."""

from __future__ import annotations

import pytest
import torch

from tests.lora.adapted import EVERYTHING, adapted_model, base_model, batch_of, logits, state
from tests.model.configs import small_model
from tests.reference import SIZES
from vl2.errors import UserError
from vl2.lora.attach import add_lora, is_adapted, lora_layers, merge_lora, remove_lora
from vl2.lora.spec import LoRASpec, Target
from vl2.model.moe import Experts


@pytest.mark.parametrize("size", SIZES)
def test_a_fresh_adapter_changes_no_output(size: str) -> None:
    model, batch = base_model(size), batch_of(size)
    before = logits(model, batch)
    add_lora(model, EVERYTHING)
    assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("size", SIZES)
def test_an_adapter_adds_exactly_the_product_of_its_matrices(size: str) -> None:
    """The oracle: the same model with scale * B A added into a copy of each weight."""
    model, batch = adapted_model(size), batch_of(size)
    plain = base_model(size)
    before = logits(plain, batch)
    weights = plain.state_dict()
    for name, layer in lora_layers(model):
        for leaf, delta in layer.deltas().items():
            weights[f"{name}.{leaf}"] += delta
    assert (logits(plain, batch) - before).abs().max() > 0.1
    torch.testing.assert_close(logits(model, batch), logits(plain, batch), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_merging_gives_the_same_answers_and_undoing_it_the_same_bits(size: str) -> None:
    model, batch = adapted_model(size), batch_of(size)
    adapted, weights = logits(model, batch), state(model)
    undo = merge_lora(model)
    assert not is_adapted(model)
    torch.testing.assert_close(logits(model, batch), adapted, atol=2e-3, rtol=1e-3)
    undo()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model, batch), adapted)


@pytest.mark.parametrize("size", SIZES)
def test_a_model_is_untouched_when_its_adapter_is_taken_off(size: str) -> None:
    plain = base_model(size)
    model = adapted_model(size)
    remove_lora(model)
    assert [(name, type(m)) for name, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model, batch_of(size)), logits(plain, batch_of(size)))


@pytest.mark.parametrize("size", SIZES)
def test_only_the_adapter_trains_and_every_matrix_of_it_gets_a_gradient(size: str) -> None:
    model = adapted_model(size)
    model.train()(batch_of(size)).logits.square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.endswith(("lora_A", "lora_B")) for name in trained)
    silent = {name for name, p in model.named_parameters() if name in trained and (p.grad is None or not p.grad.any())}
    assert silent == set()
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("attention", "language.model.layers.1.self_attn.kv_b_proj"),
        ("mlp", "language.model.layers.1.mlp.shared_experts.up_proj"),
        ("experts", "language.model.layers.1.mlp.experts"),
        ("projector", "projector.layers.2"),
        ("vision", "vision.blocks.0.attn.qkv"),
    ],
)
def test_a_target_names_its_own_layers_only(target: Target, module: str) -> None:
    names = add_lora(base_model("base"), LoRASpec(targets=(target,)))
    assert module in names
    others = [t for t in EVERYTHING.targets if t != target]
    assert not [name for name in names if any(LoRASpec(targets=(other,)).takes(name) for other in others)]
    assert not [name for name in names if "attn_pool" in name or ".gate." in name or "lm_head" in name]


def test_a_target_that_the_model_does_not_have_is_refused() -> None:
    dense = small_model("base", n_routed_experts=None)
    with pytest.raises(UserError, match="no experts to adapt"):
        add_lora(dense, LoRASpec(targets=("attention", "experts")))
    assert not is_adapted(dense)


def test_experts_of_an_unaligned_rank_give_the_same_as_of_an_aligned_one() -> None:
    """Rank 3 goes through the loop, rank 4 through the grouped product; the fourth direction is zero."""
    spec = LoRASpec(rank=4, targets=("experts",))
    model, batch = adapted_model("base", spec), batch_of("base")
    narrow = base_model("base")
    add_lora(narrow, LoRASpec(rank=3, alpha=24.0, targets=("experts",)))
    for (_, wide), (_, layer) in zip(lora_layers(model), lora_layers(narrow), strict=True):
        assert isinstance(wide.base_layer, Experts)
        for name, parameter in layer.named_parameters(recurse=False):
            full = wide.get_parameter(name).data
            (full[:, 3:] if name.endswith("A") else full[..., 3:]).zero_()
            parameter.data.copy_(full[:, :3] if name.endswith("A") else full[..., :3])
    torch.testing.assert_close(narrow(batch).logits, model(batch).logits, atol=2e-3, rtol=1e-3)


def test_dropout_is_drawn_in_training_only() -> None:
    model, batch = adapted_model("tiny", LoRASpec(rank=4, dropout=0.5)), batch_of("tiny")
    assert torch.equal(logits(model, batch), logits(model, batch))
    model.train()
    assert not torch.equal(model(batch).logits, model(batch).logits)


def test_a_rank_stabilised_adapter_is_scaled_by_the_root() -> None:
    assert LoRASpec(rank=16, alpha=32.0).scale == 2.0
    assert LoRASpec(rank=16, alpha=32.0, is_rank_stabilized=True).scale == 8.0


def test_the_same_seed_draws_the_same_adapter() -> None:
    first, second, other = (base_model("small") for _ in range(3))
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        add_lora(model, EVERYTHING, seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(UserError, match="already"):
        add_lora(adapted_model("tiny"), EVERYTHING)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ("router",)}, {"targets": ()}]
)
def test_a_spec_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        LoRASpec(**wrong)  # type: ignore[arg-type]
