"""The operations of prefill and encoder between matrix products (csrc/row_ops.h), and gated MLPs (csrc/prefill_moe.h).

They take bfloat16 tensors on a CPU. `vl2.runtime.cpu_modules` calls them instead of the model's plain functions, and
falls back to those if a kernel does not support a shape. Tests compare the two.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vl2.kernels.activation import Activation
from vl2.kernels.library import load_kernels
from vl2.kernels.structures import StackC

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class RowsC(ctypes.Structure):
    """Rows with contiguous channels; strides in elements."""

    _fields_ = [("data", _POINTER), ("batch", _INT), ("head", _INT), ("row", _INT)]

    @classmethod
    def of(cls, x_BHSC: Tensor) -> RowsC:
        return cls(x_BHSC.data_ptr(), *x_BHSC.stride()[:3])


class AttentionC(ctypes.Structure):
    _fields_ = [
        *((name, RowsC) for name in ("query", "key", "value", "out")),
        *((name, _INT) for name in ("batches", "heads", "shared", "queries", "keys", "channels", "value_channels")),
        ("before", _INT),
        ("scale", ctypes.c_double),
    ]


class RelativeAttentionC(ctypes.Structure):
    _fields_ = [
        *(("qkv", _POINTER), ("qkv_row", _INT), ("outside", _POINTER), ("out", _POINTER)),
        *((name, _INT) for name in ("views", "side", "window", "heads", "channels")),
        *((name, _POINTER) for name in ("along_h", "along_w")),
        ("scale", ctypes.c_double),
    ]


Weights = tuple[StackC, StackC, StackC]  # gate, up, down of experts


class ExpertRowsC(ctypes.Structure):
    _fields_ = [
        ("x", _POINTER),
        ("tokens", _INT),
        *((name, _POINTER) for name in ("token", "counts")),
        *((name, _INT) for name in ("experts", "width", "hidden")),
        *((name, StackC) for name in ("gate", "up", "down")),
        ("out", _POINTER),
    ]


def applies(*tensors: Tensor) -> bool:
    """Return whether the kernels can be used for these tensors: bfloat16 on a CPU, and gradients are off."""
    return (
        all(t.device.type == "cpu" and t.dtype == torch.bfloat16 and t.stride(-1) == 1 for t in tensors)
        and not torch.is_grad_enabled()
        and load_kernels() is not None
    )


def has_tiles() -> bool:
    """Return whether the loaded kernels multiply in tile registers (AMX)."""
    kernels = load_kernels()
    return kernels is not None and kernels.level == "amx"


def has_row_products() -> bool:
    """Return whether the loaded kernels multiply many rows in bfloat16 and int8: with AVX-512, and on ARM."""
    kernels = load_kernels()
    return kernels is not None and kernels.has_row_products


def attend(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, prefix_length: int | None, scale: float) -> Tensor | None:
    """Return the attention output [B, H, S, C], with the C of the values. It is contiguous as [B, S, H, C].

    Query i sees the keys 0..prefix_length + i, or all keys if `prefix_length` is None. Return None if the kernel does
    not support the shape.
    """
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    (B, H, S, C), (_, num_kv_heads, L, value_C) = q_BHSC.shape, v_BHLC.shape
    out_BHSC = torch.empty(B, S, H, value_C, dtype=q_BHSC.dtype).transpose(1, 2)
    attention = AttentionC(
        *(RowsC.of(t) for t in (q_BHSC, k_BHLC, v_BHLC, out_BHSC)),
        *(B, H, H // num_kv_heads, S, L, C, value_C),
        -1 if prefix_length is None else prefix_length,
        scale,
    )
    is_done = kernels.attend(ctypes.byref(attention), torch.get_num_threads())
    return out_BHSC if is_done else None


def attend_windows(
    qkv_IhwE: Tensor, outside_E: Tensor, heads: int, window: int, along_h_LC: Tensor, along_w_LC: Tensor
) -> Tensor | None:
    """Return attention within windows of square maps, with relative positions as in `vl2.model.sam`, [I, h, w, D].

    A row of `qkv_IhwE` is [queries | keys | values] of all heads, E = 3 D. `outside_E` stands for such a row where a
    window reaches beyond the right and bottom edges. The tables have L = 2 * window - 1 rows. All tensors are
    contiguous, but rows of `qkv_IhwE` may be farther apart. Return None if the kernel does not support the shape.
    """
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    views, side, width, E = qkv_IhwE.shape
    row = qkv_IhwE.stride(2)
    assert side == width, f"a map is a square, got {side} x {width}"
    assert qkv_IhwE.stride()[:2] == (side * side * row, side * row), "rows lie at equal distances"
    assert len(along_h_LC) == len(along_w_LC) == 2 * window - 1, "there is a vector for each distance"
    out_IhwD, channels = qkv_IhwE.new_empty(views, side, side, E // 3), E // 3 // heads
    attention = RelativeAttentionC(
        *(qkv_IhwE.data_ptr(), row, outside_E.data_ptr(), out_IhwD.data_ptr()),
        *(views, side, window, heads, channels, along_h_LC.data_ptr(), along_w_LC.data_ptr(), channels**-0.5),
    )
    return out_IhwD if kernels.attend_windows(ctypes.byref(attention), torch.get_num_threads()) else None


def run_experts(
    x_TD: Tensor,
    token_index_M: Tensor | None,
    counts_E: Tensor,
    weights: Weights,
    hidden: int,
) -> Tensor | None:
    """Return the output rows of the experts' gated MLPs, sorted by expert, [M, D].

    Row m is the token `token_index_M[m]`, or the token m if that is None; `counts_E` are the rows of each expert.
    `weights` are gate and up [E, hidden, D] and down [E, D, hidden], each matrix contiguous. Return None if the kernel
    does not support the shape.
    """
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    out_MD = torch.empty_like(x_TD) if token_index_M is None else x_TD.new_empty(len(token_index_M), x_TD.shape[1])
    rows = ExpertRowsC(
        *(x_TD.data_ptr(), len(x_TD)),
        *(None if token_index_M is None else token_index_M.data_ptr(), counts_E.data_ptr()),
        *(len(counts_E), x_TD.shape[1], hidden),
        *weights,
        out_MD.data_ptr(),
    )
    return out_MD if kernels.experts(ctypes.byref(rows), torch.get_num_threads()) else None


def normalize(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return the RMS norm over the last dimension, weight * x / rms(x). Both tensors must be contiguous."""
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    out, D = torch.empty_like(x), x.shape[-1]
    kernels.normalize(
        x.data_ptr(), weight_D.data_ptr(), x.numel() // D, D, eps, out.data_ptr(), torch.get_num_threads()
    )
    return out


def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Return the layer norm over the last dimension. All tensors must be contiguous."""
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    out, D = torch.empty_like(x), x.shape[-1]
    pointers = (t.data_ptr() for t in (x, weight_D, bias_D))
    kernels.layer_norm(*pointers, x.numel() // D, D, eps, out.data_ptr(), torch.get_num_threads())
    return out


def activate_(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation in place to a contiguous tensor, and return it."""
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    kernels.activate(x.data_ptr(), x.numel(), activation, torch.get_num_threads())
    return x


def gelu_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return `grad` times the slope of the tanh GELU at x. Both are contiguous and bfloat16."""
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    out = torch.empty_like(x)
    kernels.gelu_gradient(x.data_ptr(), grad.data_ptr(), x.numel(), out.data_ptr(), torch.get_num_threads())
    return out


def rotate_halves(x_BSHC: Tensor, cosines_BSC: Tensor, sines_BSC: Tensor, out_BSHC: Tensor | None = None) -> Tensor:
    """Rotate channel i of every head together with channel i + C/2. The angles are float32 [B, S, C/2].

    All tensors must be contiguous; only for B = 1 may `out_BSHC` have other strides over positions and heads.
    """
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    (B, S, H, C), out_BSHC = x_BSHC.shape, torch.empty_like(x_BSHC) if out_BSHC is None else out_BSHC
    assert out_BSHC.stride(-1) == 1, "the channels of a head lie together"
    assert B == 1 or out_BSHC.is_contiguous(), "several rows are written as they lie"
    angles = cosines_BSC.data_ptr(), sines_BSC.data_ptr()
    to = out_BSHC.data_ptr(), out_BSHC.stride(1), out_BSHC.stride(2)
    kernels.rotate(x_BSHC.data_ptr(), *angles, B * S, H, C // 2, *to, torch.get_num_threads())
    return out_BSHC


def swiglu_rows(gate_up_NF: Tensor, *, is_near: bool = False) -> Tensor:
    """Return silu(gate) * up of contiguous rows [gate | up], [N, F]. `is_near` gives the same bits as `run_experts`."""
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    N, width = gate_up_NF.shape[0], gate_up_NF.shape[1] // 2
    out_NF = gate_up_NF.new_empty(N, width)
    assert not is_near or width % 16 == 0, f"with these bits widths are multiples of 16, got {width}"
    kernels.swiglu_rows(gate_up_NF.data_ptr(), N, width, is_near, out_NF.data_ptr(), torch.get_num_threads())
    return out_NF


def combine_experts(rows_MD: Tensor, row_index_TK: Tensor, weight_TK: Tensor, *residual_TD: Tensor) -> Tensor:
    """Return the weighted sum of every token's K rows, [T, D], plus each of up to two residuals in turn.

    The sum is in float32 and rounded once; adding a residual rounds again. All tensors must be contiguous.
    """
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    (T, K), D = row_index_TK.shape, rows_MD.shape[1]
    out_TD = rows_MD.new_empty(T, D)
    pointers = rows_MD.data_ptr(), row_index_TK.data_ptr(), weight_TK.data_ptr()
    added = [before_TD.data_ptr() for before_TD in residual_TD] + [None] * (2 - len(residual_TD))
    kernels.combine_experts(*pointers, T, K, D, *added, out_TD.data_ptr(), torch.get_num_threads())
    return out_TD


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor | None:
    """Return the router logits, float32 [T, E], or None if the kernel does not support the shape."""
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    (T, D), E = x_TD.shape, len(weight_ED)
    out_TE = torch.empty(T, E)
    pointers = x_TD.data_ptr(), T, D, weight_ED.data_ptr(), E, out_TE.data_ptr()
    return out_TE if kernels.router_logits(*pointers, torch.get_num_threads()) else None


def topk(scores_TE: Tensor, K: int) -> Tensor:
    """Return the indices of the K largest float32 scores of every row, int64 [T, K], in descending order of scores.

    Of equal scores the one with the lower index comes first.
    """
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    (T, E), index_TK = scores_TE.shape, torch.empty(len(scores_TE), K, dtype=torch.int64)
    assert K <= E, f"there are {E} scores a row, {K} are asked for"
    kernels.topk(scores_TE.data_ptr(), T, E, K, index_TK.data_ptr(), torch.get_num_threads())
    return index_TK


def sort_by_expert(expert_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the slots by expert, so that each expert has one contiguous block of rows in the order of its tokens.

    Return the token of each row [M], the row of each slot [T, K], and the number of rows of each expert [E].
    """
    kernels = load_kernels()
    assert kernels is not None, "asked for only where `applies` says so"
    expert_TK = expert_TK.contiguous()
    token_index_M, row_index_TK = expert_TK.new_empty(expert_TK.numel()), torch.empty_like(expert_TK)
    counts_E = expert_TK.new_empty(num_experts)
    out = token_index_M.data_ptr(), row_index_TK.data_ptr(), counts_E.data_ptr()
    kernels.sort_by_expert(expert_TK.data_ptr(), *expert_TK.shape, num_experts, *out)
    return token_index_M, row_index_TK, counts_E
