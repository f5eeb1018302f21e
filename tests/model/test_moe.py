"""Routing against the released router, one path for training and evaluation, and the balance losses."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vl2.model.moe
from tests.model.configs import small_config, small_model
from tests.reference import REFERENCE
from vl2.errors import UserError
from vl2.model.moe import (
    Experts,
    MoE,
    Router,
    _grouped_mm,
    _looped_matmul,
    routing_stats,
    sequences_of_documents,
    sequences_of_rows,
    sort_by_expert,
    update_expert_bias,
    uses_grouped_mm,
)

GOLDEN = load_file(REFERENCE / "router" / "router.safetensors")
VARIANTS = json.loads((REFERENCE / "router" / "router.json").read_text())["variants"]
ROUTING_KEYS = (
    "topk_method", "scoring_func", "norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group",
    "num_experts_per_tok", "n_routed_experts",
)  # fmt: skip


def golden_router(variant: str) -> Router:
    options = {key: VARIANTS[variant][key] for key in ROUTING_KEYS}
    router = Router(replace(small_config().language_config, hidden_size=32, **options))
    router.weight.data.copy_(GOLDEN["weight"])
    if router.e_score_correction_bias is not None:
        router.e_score_correction_bias.copy_(GOLDEN["bias_negative" if "negative" in variant else "bias"])
    return router


def routed(variant: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        weights, _scores, experts = golden_router(variant)(GOLDEN["hidden"])
    order = weights.argsort(dim=-1, descending=True, stable=True)
    return experts.gather(1, order), weights.gather(1, order)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "negative" not in v])
def test_every_routing_rule_chooses_as_released(variant: str) -> None:
    experts, weights = routed(variant)
    golden_experts, golden_weights = GOLDEN[f"{variant}.idx"].long(), GOLDEN[f"{variant}.weight"]
    undecided = VARIANTS[variant].get("tokens_decided_by_a_tie_at_zero", [])
    kept = [t for t in range(len(experts)) if t not in undecided]
    assert len(kept) > 30
    assert torch.equal(experts[kept], golden_experts[kept])
    torch.testing.assert_close(weights[kept], golden_weights[kept], atol=1e-6, rtol=1e-5)


def test_a_dropped_group_never_wins_even_with_negative_scores() -> None:
    """The released code gives dropped groups the score 0, which beats an allowed expert below 0."""
    variant = "noaux_tc_negative_bias"
    router, (experts, _) = golden_router(variant), routed(variant)
    with torch.no_grad():
        scores = router(GOLDEN["hidden"])[1]
    biased = (scores + GOLDEN["bias_negative"]).unflatten(1, (4, 4))
    kept = biased.topk(2).values.sum(-1).topk(2).indices
    golden_experts = GOLDEN[f"{variant}.idx"].long()
    for t in range(len(scores)):
        allowed = {int(e) for group in kept[t] for e in range(group * 4, group * 4 + 4)}
        best = sorted(allowed, key=lambda e: -float(biased[t].flatten()[e]))[:3]
        assert set(experts[t].tolist()) == set(best)
        assert set(golden_experts[t].tolist()) - allowed, "here the released code strays for every token"
    # Of the experts that it strays to, the released code takes the weights that we would give them.
    weights = scores.gather(1, golden_experts)
    weights = weights / weights.sum(-1, keepdim=True) * 2.0
    torch.testing.assert_close(weights, GOLDEN[f"{variant}.weight"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"topk_method": "greedy", "scoring_func": "softmax", "n_group": 1, "topk_group": 1},
        {"topk_method": "group_limited_greedy", "scoring_func": "softmax", "n_group": 4, "topk_group": 2},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 1, "topk_group": 1},
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "n_group": 4, "topk_group": 2},
    ],
)
def test_every_routing_rule_trains_the_same_in_both_modes(options) -> None:
    model = small_model(**options)
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    x = torch.randn(2, 40, model.config.language_config.hidden_size, generator=torch.manual_seed(0))
    results = []
    for is_training in (True, False):
        moe.train(is_training)
        moe.zero_grad()
        y, stats = moe(x, sequences_of_rows(torch.ones(2, 40, dtype=torch.bool), "sequence"))
        (y.square().sum() + stats.balance_loss).backward()
        results.append((y.detach(), [p.grad.clone() for p in moe.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    names = [name for name, _ in moe.named_parameters()]
    assert all(g.abs().sum() > 0 for g in results[0][1]), names
    # Every expert in use gets a gradient.
    used = stats.expert_load > 0
    assert torch.equal(moe.experts.down_proj.grad.abs().sum(dim=(1, 2)) > 0, used)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_grouped_and_looped_experts_agree(counts: list[int], dtype: torch.dtype) -> None:
    generator = torch.manual_seed(0)
    weight = torch.randn(4, 24, 16, generator=generator).to(dtype).requires_grad_()
    x = torch.randn(sum(counts), 16, generator=generator).to(dtype).requires_grad_()
    outputs, gradients = [], []
    for run in (_grouped_mm, _looped_matmul):
        weight.grad = x.grad = None
        out = run(x, weight, torch.tensor(counts))
        (out.float() * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        outputs.append(out.detach())
        gradients.append((x.grad, weight.grad))
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    torch.testing.assert_close(outputs[0], outputs[1], **tolerance)
    for grouped, looped in zip(*gradients, strict=True):
        torch.testing.assert_close(grouped, looped, **tolerance)


@pytest.mark.parametrize(
    ("capability", "hip", "asking", "training"),
    [
        ((9, 0), None, True, True),
        ((10, 0), None, True, True),
        ((8, 0), None, False, True),
        ((12, 0), None, False, True),
        ((9, 4), "6.4", False, True),
        ((7, 5), None, False, False),
    ],
)
def test_a_card_without_a_kernel_for_all_experts_loops_over_those_in_use_unless_it_learns(
    capability: tuple[int, int], hip: str | None, asking: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    rows = mock.Mock(dtype=torch.bfloat16, is_cuda=True, device=torch.device("cuda"))
    weight = torch.zeros(4, 24, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        assert uses_grouped_mm(rows, weight) == asking
    assert uses_grouped_mm(rows, weight) == training


@pytest.mark.parametrize("block_rows", [1, 4, 64])
def test_every_slot_has_a_row_of_its_own_in_the_block_of_its_expert(block_rows: int) -> None:
    experts = torch.rand(23, 6, generator=torch.manual_seed(0)).topk(3).indices % 5  # expert 5 stays without tokens
    blocks = sort_by_expert(experts, 6, block_rows)
    counts, ends = blocks.counts_E, blocks.counts_E.cumsum(0)
    filled = torch.bincount(experts.flatten(), minlength=6)
    assert torch.equal(counts, -(-filled // block_rows) * block_rows)
    assert len(blocks.token_index_M) == int(counts.sum())
    assert len(set(blocks.row_index_TK.flatten().tolist())) == experts.numel()
    for t in range(23):
        for k in range(3):
            row = int(blocks.row_index_TK[t, k])
            assert int(blocks.token_index_M[row]) == t
            assert int(ends[experts[t, k]] - counts[experts[t, k]]) <= row < int(ends[experts[t, k]])


def test_blocks_rounded_up_change_neither_output_nor_gradients() -> None:
    model = small_model()
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    x = torch.randn(1, 30, model.config.language_config.hidden_size, generator=torch.manual_seed(0))
    results = []
    for block_rows in (1, 16):
        with mock.patch.object(vl2.model.moe, "block_rows", return_value=block_rows):
            moe.zero_grad()
            rows = x.clone().requires_grad_()
            y, _ = moe(rows)
            y.square().sum().backward()
        results.append([y.detach(), rows.grad, *(p.grad.clone() for p in moe.parameters())])
    for even, exact in zip(*results, strict=True):
        torch.testing.assert_close(even, exact, atol=1e-3, rtol=1e-4)


def test_prompts_in_bfloat16_meet_few_shapes() -> None:
    model = small_model().bfloat16()
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    seen: list[torch.Tensor] = []
    moe.experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    width = model.config.language_config.hidden_size
    x = torch.randn(1, 300, width, generator=torch.manual_seed(0)).bfloat16()
    with torch.no_grad():
        y, _ = moe(x)
        with mock.patch.object(vl2.model.moe, "block_rows", return_value=1):
            exact, _ = moe(x)
    assert not (seen[0] % 8).any()
    assert (seen[1] % 8).any()
    torch.testing.assert_close(y, exact, atol=2e-2, rtol=2e-2)


def test_experts_give_the_same_with_and_without_gradients() -> None:
    experts = Experts(4, 16, 8)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, generator=torch.manual_seed(1))
    x, counts = torch.randn(10, 16, generator=torch.manual_seed(0)), torch.tensor([4, 0, 1, 5])
    with torch.no_grad():
        without = experts(x, counts)
    torch.testing.assert_close(experts(x, counts).detach(), without)


def test_each_token_is_the_weighted_sum_of_its_experts() -> None:
    model = small_model()
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    x = torch.randn(1, 6, model.config.language_config.hidden_size, generator=torch.manual_seed(0))
    with torch.no_grad():
        y, _ = moe(x)
        weights, _scores, experts = moe.gate(x[0])
        for t in range(6):
            total = moe.shared_experts(x[0, t])
            for weight, e in zip(weights[t], experts[t].tolist(), strict=True):
                gate, up = (moe.experts.gate_up_proj[e] @ x[0, t]).chunk(2)
                total = total + weight * (moe.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
            torch.testing.assert_close(y[0, t], total, atol=1e-4, rtol=1e-4)


def direct_loss(scores: Tensor, experts: Tensor) -> float:
    """alpha = 1: sum over experts of (share of slots times E) times mean normalised score."""
    tokens, num_experts = scores.shape
    shares = scores / scores.sum(-1, keepdim=True)
    total = 0.0
    for e in range(num_experts):
        f = float((experts == e).sum()) * num_experts / (experts.shape[1] * tokens)
        total += f * float(shares[:, e].mean())
    return total


def test_balance_losses_follow_their_formulas() -> None:
    generator = torch.manual_seed(0)
    scores = torch.rand(3, 10, 8, generator=generator)
    experts = scores.topk(2).indices
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[0, 6:] = False
    mask[2, :3] = False
    real = [(scores[b][mask[b]], experts[b][mask[b]]) for b in range(3)]
    by_sequence, by_batch = (
        routing_stats(scores.flatten(0, 1), experts.flatten(0, 1), sequences_of_rows(mask, balance))
        for balance in ("sequence", "batch")
    )
    assert by_sequence.balance_loss.item() == pytest.approx(sum(direct_loss(*r) for r in real) / 3, rel=1e-5)
    together = direct_loss(torch.cat([s for s, _ in real]), torch.cat([e for _, e in real]))
    assert by_batch.balance_loss.item() == pytest.approx(together, rel=1e-5)
    counts = torch.bincount(torch.cat([e for _, e in real]).flatten(), minlength=8)
    assert torch.equal(by_batch.expert_load, counts)
    assert torch.equal(by_sequence.expert_load, counts)


def test_an_even_load_costs_one_and_a_collapsed_one_more() -> None:
    even, everyone = torch.full((8, 4), 0.25), torch.ones(1, 8)
    spread = torch.arange(8).remainder(4).view(8, 1)
    assert routing_stats(even, spread, everyone).balance_loss.item() == pytest.approx(1.0)
    peaked = torch.zeros(8, 4)
    peaked[:, 0] = 1
    collapsed = routing_stats(peaked, torch.zeros(8, 1, dtype=torch.long), everyone)
    assert collapsed.balance_loss.item() == pytest.approx(4.0)


def test_padding_counts_neither_in_load_nor_in_loss() -> None:
    model = small_model()
    moe = next(m for m in model.modules() if isinstance(m, MoE))
    x = torch.randn(1, 5, model.config.language_config.hidden_size, generator=torch.manual_seed(0))
    padded = torch.cat((x, torch.full((1, 3, x.shape[-1]), 7.0)), dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 3])
    for balance in ("sequence", "batch"):
        _, alone = moe(x, sequences_of_rows(mask[:, :5], balance))
        _, beside = moe(padded, sequences_of_rows(mask, balance))
        assert beside.balance_loss.item() == pytest.approx(alone.balance_loss.item(), rel=1e-5)
        assert torch.equal(beside.expert_load, alone.expert_load)


def test_documents_end_to_end_are_balanced_like_rows() -> None:
    scores = torch.rand(2, 5, 8, generator=torch.manual_seed(0))
    experts = scores.topk(2).indices
    lengths = (5, 3)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    real = torch.cat([torch.arange(n) + 5 * row for row, n in enumerate(lengths)])
    padding = torch.full((4,), 9)  # whatever is routed there must not matter
    place = torch.cat((real, padding))
    borders = torch.tensor([0, 5, 8, 12], dtype=torch.int32)
    for balance in ("sequence", "batch"):
        rows = routing_stats(scores.flatten(0, 1), experts.flatten(0, 1), sequences_of_rows(mask, balance))
        packed = routing_stats(
            scores.flatten(0, 1)[place],
            experts.flatten(0, 1)[place],
            sequences_of_documents(borders, 12, sum(lengths), balance),
        )
        assert packed.balance_loss.item() == pytest.approx(rows.balance_loss.item(), rel=1e-6)
        assert torch.equal(packed.expert_load, rows.expert_load)


def test_the_bias_moves_against_the_load_and_evens_it() -> None:
    router = golden_router("noaux_tc_1group")
    hidden = torch.randn(4000, 32, generator=torch.manual_seed(0)) + GOLDEN["hidden"].mean(0)

    def load() -> Tensor:
        with torch.no_grad():
            return torch.bincount(router(hidden)[2].flatten(), minlength=router.num_experts)

    before = load()
    bias = router.e_score_correction_bias.clone()
    update_expert_bias(router, before, 0.001)
    moved = router.e_score_correction_bias - bias
    assert torch.equal(moved.sign(), torch.sign(before.float().mean() - before.float()))
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.001), atol=1e-6, rtol=0)
    for _ in range(600):
        update_expert_bias(router, load(), 0.001)
    assert load().max() / load().float().mean() < 1.1 < before.max() / before.float().mean()


def test_only_bias_routing_takes_a_bias_update() -> None:
    with pytest.raises(AssertionError, match="no expert bias"):
        update_expert_bias(golden_router("greedy_softmax"), torch.ones(16), 0.001)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"topk_method": "gready"}, "topk_method"),
        ({"scoring_func": "relu"}, "scoring_func"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"n_group": 3}, "n_group"),
        ({"topk_group": 5}, "topk_group"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok must be at most 4"),
        ({"n_group": 8}, "n_group must be at most 4"),
    ],
)
def test_a_routing_setting_that_cannot_work_is_named(options, named: str) -> None:
    with pytest.raises(UserError, match=named):
        small_config(**options)
