"""One Triton kernel turns the router's logits into scores, the K best experts and their weights, token by token.

It computes what `vl2.model.moe.Router` computes after its logits, in float32. Of equal scores the expert with the lower
index is chosen, as in the CPU kernels.

T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vl2.runtime.gpu_kernels.grouped_matmul import on_device_of


def route(
    logits_TE: Tensor, bias_E: Tensor | None, K: int, *, is_sigmoid: bool, is_normalized: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights [T, K] and scores [T, E] in float32, and the chosen experts, int64 [T, K], the best one first.

    The scores are the softmax or the sigmoid of float32 logits. `bias_E` is added for the choice only. Weights are
    divided by their sum with `is_normalized`, and multiplied by `scale`.
    """
    T, E = logits_TE.shape
    assert 1 <= K <= E, f"{K} of {E} experts"
    logits_TE = logits_TE.contiguous()
    scores_TE, weight_TK = torch.empty_like(logits_TE), logits_TE.new_empty(T, K)
    expert_TK = torch.empty(T, K, dtype=torch.int64, device=logits_TE.device)
    if T:
        with on_device_of(logits_TE):
            route_kernel[(T,)](
                logits_TE,
                logits_TE if bias_E is None else bias_E.contiguous(),
                scores_TE,
                weight_TK,
                expert_TK,
                E,
                scale,
                K=K,
                BLOCK_E=triton.next_power_of_2(E),
                BLOCK_K=triton.next_power_of_2(K),
                HAS_BIAS=bias_E is not None,
                IS_SIGMOID=is_sigmoid,
                IS_NORMALIZED=is_normalized and K > 1,
                num_warps=1,
                enable_fp_fusion=True,
            )
    return weight_TK, scores_TE, expert_TK


@triton.jit
def route_kernel(
    logits_ptr,
    bias_ptr,
    scores_ptr,
    weights_ptr,
    experts_ptr,
    E,
    scale,
    K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SIGMOID: tl.constexpr,
    IS_NORMALIZED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    expert_E, slot_K = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    is_expert_E = expert_E < E
    logit_E = tl.load(logits_ptr + token * E + expert_E, mask=is_expert_E, other=-float("inf"))
    if IS_SIGMOID:
        score_E = 1 / (1 + tl.exp(-logit_E))
    else:
        exp_E = tl.exp(logit_E - tl.max(logit_E, axis=0))
        score_E = exp_E / tl.sum(exp_E, axis=0)
    tl.store(scores_ptr + token * E + expert_E, score_E, mask=is_expert_E)
    left_E = score_E
    if HAS_BIAS:
        left_E += tl.load(bias_ptr + expert_E, mask=is_expert_E, other=0.0)
    left_E = tl.where(is_expert_E, left_E, -float("inf"))
    weight_K = tl.zeros((BLOCK_K,), dtype=tl.float32)
    chosen_K = tl.zeros((BLOCK_K,), dtype=tl.int32)
    for slot in tl.static_range(K):
        is_best_E = left_E == tl.max(left_E, axis=0)
        # If all scores are NaN none is the best. The minimum then keeps the index inside the experts.
        best = tl.minimum(tl.min(tl.where(is_best_E, expert_E, BLOCK_E), axis=0), E - 1)
        weight = tl.sum(tl.where(expert_E == best, score_E, 0.0), axis=0)
        weight_K = tl.where(slot_K == slot, weight, weight_K)
        chosen_K = tl.where(slot_K == slot, best, chosen_K)
        left_E = tl.where(expert_E == best, -float("inf"), left_E)
    if IS_NORMALIZED:
        weight_K = weight_K / (tl.sum(weight_K, axis=0) + 1e-20)
    is_slot_K = slot_K < K
    tl.store(weights_ptr + token * K + slot_K, weight_K * scale, mask=is_slot_K)
    tl.store(experts_ptr + token * K + slot_K, chosen_K.to(tl.int64), mask=is_slot_K)
