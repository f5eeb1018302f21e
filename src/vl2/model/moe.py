"""DeepSeekMoE: a router, E routed experts of which each token visits K, and shared experts for all tokens.

Training and evaluation run the same code. The balance loss and the expert load are returned, never injected into
autograd, so the trainer alone decides how they are weighted. The router computes in float32.

Source: arXiv 2401.06066 (experts), 2412.19437 (sigmoid routing), 2408.15664 (expert bias); released MoEGate.
Golden: tests/golden/reference/router, router_L_* in tests/golden/reference/model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.config import LanguageConfig
from vl2.model.layers import GatedMLP

Balance = Literal["sequence", "batch"]


@dataclass(frozen=True, kw_only=True)
class RoutingStats:
    """The balance loss and the expert load of one MoE layer in one pass."""

    balance_loss: Tensor  # float32 scalar, unweighted; 1 when the load is even
    expert_load: Tensor  # int64 [E], slots per expert


class Router(nn.Module):
    """Choose K experts for each token, and their weights."""

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
        # The bias sums many small steps, which bfloat16 would round away, so it stays float32 when the model is cast.
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.e_score_correction_bias
        if bias is not None and moved is not None and moved.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(device=moved.device, dtype=torch.float32)
        return self

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return weights [T, K] and scores [T, E] in float32, and the chosen experts [T, K]."""
        logits_TE = self.logits(x_TD)
        scores_TE = logits_TE.softmax(dim=-1) if self.config.scoring_func == "softmax" else logits_TE.sigmoid()
        expert_TK = self._choose(scores_TE.detach())
        weight_TK = scores_TE.gather(1, expert_TK)
        if self.config.norm_topk_prob and self.experts_per_token > 1:
            weight_TK = weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return weight_TK * self.config.routed_scaling_factor, scores_TE, expert_TK

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return the logits of every expert for every token, in float32."""
        return F.linear(x_TD.float(), self.weight.float())

    def _choose(self, scores_TE: Tensor) -> Tensor:
        """Return the K experts of each token, [T, K]. With groups, only those of the best groups are candidates."""
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
            # Exclude the dropped experts with -inf. The released code uses 0, with which a dropped expert would win if
            # the biased scores of the others are negative.
            scores_TE = grouped_TGE.masked_fill(is_dropped_TG.unsqueeze(-1), float("-inf")).flatten(1)
        return self.topk(scores_TE)

    def topk(self, scores_TE: Tensor) -> Tensor:
        """Return the indices of the K largest scores of every token, [T, K], in any order."""
        return scores_TE.topk(self.experts_per_token, dim=-1, sorted=False).indices


class PlainExperts(nn.Module, ABC):
    """E gated MLPs with unquantized weights. The gate and up projections of an expert are one matrix."""

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Run each expert on its rows, [N, D]. The rows are sorted by expert, `counts_E` rows for each."""
        return self.down(swiglu(self.gate_up(x_ND, counts_E)), counts_E)

    @abstractmethod
    def gate_up(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Multiply the rows by the first matrix of their expert: [N, 2 F]."""

    @abstractmethod
    def down(self, h_NF: Tensor, counts_E: Tensor) -> Tensor:
        """Multiply the rows by the second matrix of their expert: [N, D]."""


class Experts(PlainExperts):
    """E gated MLPs whose weights are stacked in one tensor per matrix."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(num_experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.zeros(num_experts, width, hidden))

    def gate_up(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        return grouped_matmul(x_ND, self.gate_up_proj, counts_E)

    def down(self, h_NF: Tensor, counts_E: Tensor) -> Tensor:
        return grouped_matmul(h_NF, self.down_proj, counts_E)


def swiglu(gate_up_NF: Tensor) -> Tensor:
    """Return silu(gate) * up of rows [gate | up]."""
    gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
    return F.silu(gate_NF) * up_NF


def grouped_matmul(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply each row by the matrix of its expert, [N, F]. Rows are sorted by expert, `counts_E` rows for each."""
    run = _grouped_mm if uses_grouped_mm(x_ND, weight_EFD) else _looped_matmul
    return run(x_ND, weight_EFD, counts_E)


def uses_grouped_mm(x_ND: Tensor, weight_EFD: Tensor) -> bool:
    """Tell whether PyTorch's grouped matmul supports these tensors and is faster than a loop over the experts.

    On a CPU it is faster if gradients are needed. Without gradients the loop has less memory traffic, because with few
    tokens it reads only the experts in use. A GPU without a kernel for grouped matmul follows the same rule. The CUDA
    kernels need bfloat16 and rows that are multiples of 16 bytes.
    """
    if x_ND.dtype != weight_EFD.dtype or not is_aligned(weight_EFD):
        return False
    if x_ND.is_cuda:
        capability = torch.cuda.get_device_capability(x_ND.device)
        is_better = has_grouped_mm(capability, torch.version.hip) or torch.is_grad_enabled()
        return is_better and x_ND.dtype == torch.bfloat16 and capability >= (8, 0)
    return x_ND.device.type == "cpu" and torch.is_grad_enabled() and x_ND.dtype in (torch.float32, torch.bfloat16)


def is_aligned(weight_EFD: Tensor) -> bool:
    """Tell whether the rows and columns of each matrix are multiples of 16 bytes."""
    return all(side * weight_EFD.element_size() % 16 == 0 for side in weight_EFD.shape[1:])


def has_grouped_mm(capability: tuple[int, int], hip: str | None) -> bool:
    """Tell whether PyTorch has a grouped matmul kernel for a GPU of this compute capability.

    `hip` is PyTorch's HIP version on AMD GPUs, None on others. Without a kernel, PyTorch too loops over the experts,
    and waits for the device to learn how many rows each expert has.
    """
    return hip is None and capability[0] in (9, 10)


def _grouped_mm(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    ends_E = counts_E.cumsum(0).to(torch.int32)
    return F.grouped_mm(x_ND, weight_EFD.mT, offs=ends_E)


def _looped_matmul(x_ND: Tensor, weight_EFD: Tensor, counts_E: Tensor) -> Tensor:
    # Never index a stacked parameter if gradients are needed: the backward pass of each index builds a gradient of the
    # whole stack that is zero elsewhere.
    return matmul_each(x_ND, weight_EFD.unbind(0) if torch.is_grad_enabled() else weight_EFD, counts_E)


def matmul_each(x_ND: Tensor, weights: Sequence[Tensor] | Tensor, counts_E: Tensor) -> Tensor:
    """Multiply rows sorted by expert by the matrix [F, D] of their expert, one expert after another. Return [N, F]."""
    counts = counts_E.tolist()  # the one host sync of the layer
    blocks = x_ND.split(counts)
    if torch.is_grad_enabled():
        outputs = [F.linear(rows, weights[e]) for e, rows in enumerate(blocks) if len(rows)]
        return torch.cat(outputs or [F.linear(x_ND, weights[0])])
    out_NF = x_ND.new_empty(len(x_ND), weights[0].shape[0])
    for e, (rows, out) in enumerate(zip(blocks, out_NF.split(counts), strict=True)):
        if len(rows):
            torch.mm(rows, weights[e].mT, out=out)
    return out_NF


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The N slots sorted by expert, in M rows. There are more rows than slots if blocks are padded."""

    token_index_M: Tensor  # the token that each row is a copy of; for a padding row, token 0
    row_index_TK: Tensor  # the row of every slot
    counts_E: Tensor  # rows of each expert's block, padding included


def sort_by_expert(expert_TK: Tensor, num_experts: int, block_rows: int) -> Blocks:
    """Give every expert a block of rows, in the order of its tokens, padded to a multiple of `block_rows`."""
    (T, K), slots_N = expert_TK.shape, expert_TK.flatten()
    order_N = slots_N.argsort(stable=True)
    # Counting the slots of each expert would wait for the device. Searching for the end of each expert does not.
    ends_E = torch.searchsorted(slots_N[order_N], torch.arange(num_experts, device=slots_N.device), right=True)
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    row_index_N, num_rows = torch.arange(T * K, device=slots_N.device), T * K
    if block_rows > 1:
        filled_E, counts_E = counts_E, -(-counts_E // block_rows) * block_rows
        added_E = (counts_E - filled_E).cumsum(0) - (counts_E - filled_E)  # padding before each block
        row_index_N, num_rows = row_index_N + added_E[slots_N[order_N]], int(counts_E.sum())
    token_index_M = torch.zeros(num_rows, dtype=torch.int64, device=slots_N.device).index_copy_(
        0, row_index_N, order_N // K
    )
    row_index_TK = torch.empty_like(order_N).index_copy_(0, order_N, row_index_N).view(T, K)
    return Blocks(token_index_M=token_index_M, row_index_TK=row_index_TK, counts_E=counts_E)


# With more tokens than this, blocks are not made equal: every expert would multiply as many rows as there are tokens.
MAX_EQUAL_ROWS = 64


def block_rows(x_TD: Tensor, experts: nn.Module, *, equal_blocks: bool) -> int:
    """Return the multiple to which each expert's block of rows is padded. It is 1 except on a CPU.

    A matmul of another shape may round differently, and the number of an expert's tokens depends on all tokens of a
    pass. With `equal_blocks` every block has a row for each token, so that no token changes the rounding of another.

    oneDNN compiles a bfloat16 kernel for each new shape, which takes some twenty times as long as the matmul and some
    MB of memory, so row counts are padded to few shapes. Quantized experts multiply row by row and need no padding.
    """
    if x_TD.device.type != "cpu":
        return 1
    if torch.is_grad_enabled():
        return 64 if x_TD.dtype == torch.bfloat16 else 1
    if equal_blocks and len(x_TD) <= MAX_EQUAL_ROWS:
        return len(x_TD)
    return 8 if x_TD.dtype == torch.bfloat16 and isinstance(experts, PlainExperts) else 1


class _Dispatch(torch.autograd.Function):
    """Copy tokens to the rows of their experts. In the backward pass every token sums the gradients of its rows.

    The order of this sum is fixed. PyTorch's own backward pass of indexing adds row by row, which is slow on the CPU
    and has no fixed order on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_index_M: Tensor, row_index_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_index_TK)
        return x_TD.index_select(0, token_index_M)

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
        (row_index_TK,) = ctx.saved_tensors
        grad_TKD = grad_MD.index_select(0, row_index_TK.flatten()).view(*row_index_TK.shape, -1)
        return grad_TKD.sum(dim=1), None, None


class _Collect(torch.autograd.Function):
    """Copy rows back to the slots of their tokens, [T, K, D].

    No two slots share a row, so the backward pass is a copy as well. Padding rows get a zero gradient.
    """

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, row_index_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_index_TK)
        ctx.num_rows = len(rows_MD)
        return rows_MD.index_select(0, row_index_TK.flatten()).view(*row_index_TK.shape, -1)

    @staticmethod
    def backward(ctx: Any, grad_TKD: Tensor) -> tuple[Tensor, None]:
        (row_index_TK,) = ctx.saved_tensors
        grad_MD = grad_TKD.new_zeros(ctx.num_rows, grad_TKD.shape[-1])
        return grad_MD.index_copy_(0, row_index_TK.flatten(), grad_TKD.flatten(0, 1)), None


def combine_experts(rows_MD: Tensor, row_index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """Return the weighted sum of each token's K rows, [T, D], computed in float32 and returned in the rows' type."""
    slots_TKD: Tensor = _Collect.apply(rows_MD, row_index_TK)  # type: ignore[no-untyped-call]
    return (slots_TKD * weight_TK.unsqueeze(-1)).sum(dim=1).to(rows_MD.dtype)


class MoE(nn.Module):
    """Run each token through its K experts, sum their weighted outputs, and add the shared experts' output."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        assert config.n_routed_experts is not None
        D, F_ = config.hidden_size, config.moe_intermediate_size
        self.gate = Router(config)
        self.experts = Experts(config.n_routed_experts, D, F_)
        shared = config.n_shared_experts
        self.shared_experts = GatedMLP(D, shared * F_) if shared else None

    def forward(
        self, x_BSD: Tensor, sequences_GT: Tensor | None = None, *, equal_blocks: bool = False
    ) -> tuple[Tensor, RoutingStats | None]:
        """Return the output [B, S, D], and the routing statistics if `sequences_GT` is given (see `routing_stats`).

        For `equal_blocks` see `block_rows`.
        """
        x_TD = x_BSD.flatten(0, 1)
        weight_TK, scores_TE, expert_TK = self.gate(x_TD)
        y_BSD = self.routed(x_TD, weight_TK, expert_TK, equal_blocks=equal_blocks).view_as(x_BSD)
        if self.shared_experts is not None:
            y_BSD = self.shared_experts(x_BSD) + y_BSD
        return y_BSD, None if sequences_GT is None else routing_stats(scores_TE, expert_TK, sequences_GT)

    def routed(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor, *, equal_blocks: bool = False) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs, [T, D]."""
        # Each expert sees one contiguous block of rows; then every token sums its K rows in float32.
        out_MD, row_index_TK = run_experts(
            self.experts, x_TD, expert_TK, self.gate.num_experts, equal_blocks=equal_blocks
        )
        return combine_experts(out_MD, row_index_TK, weight_TK)


def run_experts(
    experts: nn.Module, x_TD: Tensor, expert_TK: Tensor, num_experts: int, *, equal_blocks: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the experts' output rows sorted by expert, [M, D], and the row index of every slot, [T, K]."""
    rows = block_rows(x_TD, experts, equal_blocks=equal_blocks)
    blocks = sort_by_expert(expert_TK, num_experts, rows)
    rows_MD: Tensor = _Dispatch.apply(x_TD, blocks.token_index_M, blocks.row_index_TK)  # type: ignore[no-untyped-call]
    return experts(rows_MD, blocks.counts_E), blocks.row_index_TK


def routing_stats(scores_TE: Tensor, expert_TK: Tensor, sequences_GT: Tensor) -> RoutingStats:
    """Return the load of every expert, and the balance loss sum_e f_e * P_e averaged over the sequences.

    `sequences_GT` (float32) is 1 where a token belongs to a sequence. Padding belongs to none and is not counted;
    sequences without tokens are left out of the average. f_e is E times the share of a sequence's slots that went to
    expert e. P_e is the mean score of e, after each token's scores are normalized to the sum 1. Only P has a gradient.
    """
    E, K = scores_TE.shape[1], expert_TK.shape[1]
    chosen_TE = torch.zeros_like(scores_TE).scatter(1, expert_TK, 1.0)
    share_TE = scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + 1e-20)
    count_GE, probability_GE = sequences_GT @ chosen_TE, sequences_GT @ share_TE
    num_tokens_G1 = sequences_GT.sum(1, keepdim=True)
    loss_G = (count_GE * (E / K) / num_tokens_G1.clamp(min=1).square() * probability_GE).sum(-1)
    loss = loss_G.sum() / (num_tokens_G1 > 0).sum().clamp(min=1)
    return RoutingStats(balance_loss=loss, expert_load=count_GE.sum(0).to(torch.int64))


def sequences_of_rows(token_mask_BS: Tensor, balance: Balance) -> Tensor:
    """Return the sequences over which padded rows are balanced, [G, B * S], as `routing_stats` takes them.

    With "sequence" each row is one, with "batch" all rows together are one.
    """
    B = len(token_mask_BS)
    if balance == "batch":
        return token_mask_BS.flatten().unsqueeze(0).float()
    own_BBS = torch.eye(B, device=token_mask_BS.device).unsqueeze(-1) * token_mask_BS.float()
    return own_BBS.flatten(1)


def sequences_of_documents(cu_seqlens: Tensor, S: int, num_tokens: int, balance: Balance) -> Tensor:
    """Return the sequences over which a packed row is balanced, [G, S], as `routing_stats` takes them.

    With "sequence" each document is one, with "batch" the first `num_tokens` tokens together are one. Later tokens are
    padding and belong to none.
    """
    place_S = torch.arange(S, device=cu_seqlens.device)
    is_real_S = place_S < num_tokens
    if balance == "batch":
        return is_real_S.unsqueeze(0).float()
    first_G1, end_G1 = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    return ((place_S >= first_G1) & (place_S < end_G1) & is_real_S).float()


@torch.no_grad()
def update_expert_bias(router: Router, expert_load_E: Tensor, step: float) -> None:
    """Lower the bias of every overloaded expert by `step` and raise that of every underloaded one, in place.

    `expert_load_E` counts the slots of all tokens of the optimizer step, over all ranks. Source: arXiv 2408.15664.
    """
    assert router.e_score_correction_bias is not None, "this router has no expert bias"
    load_E = expert_load_E.float()
    router.e_score_correction_bias += step * torch.sign(load_E.mean() - load_E)
