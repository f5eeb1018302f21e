"""What a rank runs to no effect: a blank tile leaves the numbers as they are, and gradients of zeros."""

from __future__ import annotations

import torch

from tests.model.configs import small_model
from tests.train.packs import random_pack
from vl2.train.blank import blank_pack, run_pack, with_no_effect


def test_a_blank_tile_changes_nothing_and_leaves_gradients_of_zeros() -> None:
    model = small_model("base")
    pack = random_pack(model.config, [(5, None), (3, None)])
    with_tile = run_pack(model, pack, runs_encoder=True).states_BSD
    assert torch.equal(with_tile, model.states(pack).states_BSD)
    with_tile.square().sum().backward()
    visual = {n: p for n, p in model.named_parameters() if not n.startswith("language") and "attn_pool" not in n}
    assert all(p.grad is not None and not p.grad.any() for p in visual.values()), list(visual)


def test_a_pack_of_nothing_runs_a_blank_tile_too() -> None:
    model = small_model("base")
    hidden = run_pack(model, blank_pack(model.config), runs_encoder=True)
    hidden.states_BSD.square().sum().backward()
    assert model.vision.blocks[0].attn.qkv.weight.grad is not None


def test_what_has_no_effect_has_none_even_where_it_is_not_a_number() -> None:
    x, idle = torch.ones(3, requires_grad=True), torch.full((2, 2), float("nan"), requires_grad=True)
    out = with_no_effect(x, idle)
    assert torch.equal(out, x)
    (out * 2).sum().backward()
    assert x.grad is not None
    assert idle.grad is not None
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    assert torch.equal(idle.grad, torch.zeros(2, 2))
