"""DeepSeekMoE: a router, E routed experts of which each token visits K, and shared experts for all tokens.

One path for training and evaluation. The balance loss and the expert load are returned, never injected
into autograd, so the trainer alone decides how they are weighted. Router arithmetic is float32.

Source: arXiv 2401.06066 (experts), 2412.19437 (sigmoid routing), 2408.15664 (expert bias); released MoEGate.
Golden: tests/golden/reference/router, router_L_* in tests/golden/reference/model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.config import LanguageConfig
from vl2.model.layers import GatedMLP

Balance = Literal["sequence", "batch"]


@dataclass(frozen=True, kw_only=True)
class RoutingStats:
    """What one MoE layer reports of a pass."""

    balance_loss: Tensor  # float32 scalar, unweighted; 1 when the load is even
    expert_load: Tensor  # int64 [E], slots per expert


class Router(nn.Module):
    """Choose K experts per token, with their weights."""

    e_score_correction_bias: Tensor | None

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        assert config.num_experts_per_tok is not None
        self.config = config
        self.num_experts, self.experts_per_token = config.n_routed_experts, config.num_experts_per_tok
        self.weight = nn.Parameter(torch.zeros(self.num_experts, config.hidden_size))
        bias = torch.zeros(self.num_experts, dtype=torch.float32) if config.has_expert_bias else None
        self.register_buffer("e_score_correction_bias", bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        # The bias is a sum of many small steps, which bfloat16 would round away: no cast may touch it.
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.e_score_correction_bias
        if bias is not None and moved is not None and moved.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(device=moved.device, dtype=torch.float32)
        return self

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights [T, K] and scores [T, E] in float32, and the chosen experts [T, K]."""
        logits_TE = F.linear(x_TD.float(), self.weight.float())
        scores_TE = logits_TE.softmax(dim=-1) if self.config.scoring_func == "softmax" else logits_TE.sigmoid()
        expert_TK = self._choose(scores_TE.detach())
        weight_TK = scores_TE.gather(1, expert_TK)
        if self.config.norm_topk_prob and self.experts_per_token > 1:
            weight_TK = weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return weight_TK * self.config.routed_scaling_factor, scores_TE, expert_TK

    def _choose(self, scores_TE: Tensor) -> Tensor:
        method = self.config.topk_method
        if self.e_score_correction_bias is not None:
            # The bias steers the choice only; the weights come from the unbiased scores.
            scores_TE = scores_TE + self.e_score_correction_bias
        num_groups = self.config.n_group or 1
        if method != "greedy" and num_groups > 1:
            best = 2 if method == "noaux_tc" else 1
            grouped_TGE = scores_TE.unflatten(1, (num_groups, -1))
            group_score_TG = grouped_TGE.topk(best, dim=-1).values.sum(dim=-1)
            kept = group_score_TG.topk(self.config.topk_group or 1, dim=-1, sorted=False).indices
            is_dropped_TG = torch.ones_like(group_score_TG, dtype=torch.bool).scatter(1, kept, False)
            # -inf, not 0 as released: a biased score may be negative, and then a dropped expert would win.
            scores_TE = grouped_TGE.masked_fill(is_dropped_TG.unsqueeze(-1), float("-inf")).flatten(1)
        return scores_TE.topk(self.experts_per_token, dim=-1, sorted=False).indices


class Experts(nn.Module):
    """E gated MLPs with stacked weights; gate and up projection are one matrix."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(num_experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.zeros(num_experts, width, hidden))

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Run rows sorted by expert, `counts_E` rows for each."""
        run = _grouped_product if _has_grouped_product(x_ND, self.gate_up_proj, self.down_proj) else _looped_product
        gate_NF, up_NF = run(x_ND, self.gate_up_proj, counts_E).chunk(2, dim=-1)
        return run(F.silu(gate_NF) * up_NF, self.down_proj, counts_E)


def _has_grouped_product(x_ND: Tensor, *weights: Tensor) -> bool:
    """Whether PyTorch's grouped product takes these tensors and is the faster way.

    On a CPU it wins where gradients are needed and loses nothing to the loop elsewhere but memory traffic:
    with few tokens the loop touches only the experts in use. CUDA kernels take bfloat16 and rows of 16 bytes.
    """
    is_aligned = all(w.shape[i] * w.element_size() % 16 == 0 for w in weights for i in (1, 2))
    if x_ND.dtype != weights[0].dtype or not is_aligned:
        return False
    if x_ND.is_cuda:
        return x_ND.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x_ND.device) >= (8, 0)
    return x_ND.device.type == "cpu" and torch.is_grad_enabled() and x_ND.dtype in (torch.float32, torch.bfloat16)


def _grouped_product(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    ends_E = counts_E.cumsum(0).to(torch.int32)
    return F.grouped_mm(x_ND, weight_EFD.mT, offs=ends_E)


def _looped_product(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    counts = counts_E.tolist()  # the one host sync of the layer
    # Never index a stacked parameter where gradients are needed: the backward pass of each index
    # builds a zero gradient of the whole stack.
    weights = weight_EFD.unbind(0) if torch.is_grad_enabled() else weight_EFD
    blocks = x_ND.split(counts)
    outputs = [F.linear(rows, weights[e]) for e, rows in enumerate(blocks) if len(rows)]
    return torch.cat(outputs or [F.linear(x_ND, weights[0])])


class MoE(nn.Module):
    """Send each token to its K experts and add the shared experts."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        D, F_ = config.hidden_size, config.moe_intermediate_size
        self.gate = Router(config)
        self.experts = Experts(config.n_routed_experts, D, F_)
        shared = config.n_shared_experts
        self.shared_experts = GatedMLP(D, shared * F_) if shared else None

    def forward(
        self, x_BSD: Tensor, token_mask_BS: Tensor | None = None, balance: Balance | None = None
    ) -> tuple[Tensor, RoutingStats | None]:
        """Return the mixed output and, where `balance` says how, the layer's statistics over unmasked tokens."""
        x_TD = x_BSD.flatten(0, 1)
        weight_TK, scores_TE, expert_TK = self.gate(x_TD)
        num_tokens, K = expert_TK.shape

        # Sort the N slots by expert, so that each expert sees one contiguous block of rows.
        order_N = expert_TK.flatten().argsort(stable=True)
        counts_E = torch.bincount(expert_TK.flatten(), minlength=self.gate.num_experts)
        grouped_ND = self.experts(x_TD[order_N // K], counts_E)

        # Undo the sort, then sum over K in float32. A scatter_add would not be repeatable on CUDA.
        slots_ND = torch.empty_like(grouped_ND).index_copy(0, order_N, grouped_ND)
        routed_TD = (slots_ND.view(num_tokens, K, -1) * weight_TK.unsqueeze(-1)).sum(dim=1)
        y_BSD = routed_TD.to(x_BSD.dtype).view_as(x_BSD)
        if self.shared_experts is not None:
            y_BSD = y_BSD + self.shared_experts(x_BSD)
        if balance is None:
            return y_BSD, None
        B = x_BSD.shape[0]
        scores_BSE, expert_BSK = scores_TE.unflatten(0, (B, -1)), expert_TK.unflatten(0, (B, -1))
        return y_BSD, routing_stats(scores_BSE, expert_BSK, token_mask_BS, balance)


def routing_stats(
    scores_BSE: Tensor, expert_BSK: Tensor, token_mask_BS: Tensor | None, balance: Balance
) -> RoutingStats:
    """Return the load of every expert and the balance loss sum_e f_e * P_e of the unmasked tokens.

    f_e is the share of slots that went to expert e times E, P_e the mean score of e, its scores normalised
    to sum 1 over the experts. "sequence" takes both per row and averages the rows; "batch" takes all
    tokens together. Only P carries a gradient.
    """
    E, K = scores_BSE.shape[-1], expert_BSK.shape[-1]
    if token_mask_BS is None:
        token_mask_BS = torch.ones(scores_BSE.shape[:2], dtype=torch.bool, device=scores_BSE.device)
    real_BS1 = token_mask_BS.unsqueeze(-1).to(scores_BSE.dtype)
    chosen_BSE = torch.zeros_like(scores_BSE).scatter(2, expert_BSK, 1.0) * real_BS1
    share_BSE = scores_BSE / (scores_BSE.sum(dim=-1, keepdim=True) + 1e-20) * real_BS1
    count_BE, probability_BE, tokens_B1 = chosen_BSE.sum(1), share_BSE.sum(1), real_BS1.sum(1)
    load_E = count_BE.sum(0).to(torch.int64)
    if balance == "batch":
        count_BE, probability_BE, tokens_B1 = (t.sum(0, keepdim=True) for t in (count_BE, probability_BE, tokens_B1))
    tokens_B1 = tokens_B1.clamp(min=1)
    loss_B = (count_BE * (E / K) / tokens_B1 * probability_BE / tokens_B1).sum(-1)
    return RoutingStats(balance_loss=loss_B.mean(), expert_load=load_E)


@torch.no_grad()
def update_expert_bias(router: Router, expert_load_E: Tensor, step: float) -> None:
    """Move the bias of every overloaded expert down by `step` and of every underloaded one up. In place.

    `expert_load_E` counts the slots of all tokens of the optimizer step, over all ranks. Source: arXiv 2408.15664.
    """
    assert router.e_score_correction_bias is not None, "this router has no expert bias"
    load_E = expert_load_E.float()
    router.e_score_correction_bias += step * torch.sign(load_E.mean() - load_E)
