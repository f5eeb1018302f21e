"""One Triton kernel multiplies rows by weights in int4, int8 or 16 bits: by one weight, or each row by its expert's.

Rows are sorted by expert. A program computes a block of outputs for all rows of one expert, so all rows of all experts
take one launch, and no program needs the number of rows on the host. A weight is read from memory once: if an expert
has more rows than fit into a block, the program reads the weight again from the cache.

Codes are multiplied as the numbers that they stand for, without rounding weights: an int4 group of 32 inputs is summed
in float32 and then scaled, an int8 row is scaled at its end. `vl2.quant.formats` defines the codes.

M rows, K inputs, N outputs, E experts.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from vl2.quant.formats import GROUP, PANEL, Kind, Quantized, quantize

WeightKind = Literal["int4", "int8", "plain"]
# An int4 group has 4 words of 32 bits for each output, with 8 inputs each.
WORDS: tl.constexpr = tl.constexpr(4)
INPUTS: tl.constexpr = tl.constexpr(8)
# Blocks of 64 rows would use other instructions on cards of compute capability 9 and 10, and round differently. Up to
# this number of rows for each expert on average there are smaller ones, so that a decoding step of any size gives a row
# the same bits.
MOST_ROWS_IN_SMALL_BLOCKS = 64
NARROW = 4096  # up to so many outputs, blocks are narrower, so that a single weight occupies the whole card


@dataclass(frozen=True)
class Weights:
    """The weights of E experts, stacked, or of one layer (E is 1), in one of three forms.

    int4: codes uint8 [E, P, G, 256] and scales float16 [E, P, G, 16] with P panels of 16 outputs and G groups of 32
    inputs. int8: codes [E, N, K] and scales float32 [E, N]. plain: codes are the 16-bit weights [E, N, K]; no scales.
    """

    kind: WeightKind
    codes: Tensor
    scales: Tensor | None
    num_outputs: int  # N

    @classmethod
    def of_layer(cls, quantized: Quantized, num_outputs: int) -> Weights:
        return cls(quantized.kind, quantized.codes.unsqueeze(0), quantized.scales.unsqueeze(0), num_outputs)


def multiply(x_MK: Tensor, weights: Weights, counts_E: Tensor | None = None, bias_N: Tensor | None = None) -> Tensor:
    """Return the products [M, N] of rows with their expert's transposed weight, plus the bias, in the type of the rows.

    The rows are bfloat16 or float16. They are sorted by expert, and expert e has `counts_E[e]` of them, which must sum
    to M. Without `counts_E` there is one weight.
    """
    (M, K), N = x_MK.shape, weights.num_outputs
    E = 1 if counts_E is None else len(counts_E)
    codes, scales = weights.codes.contiguous(), weights.scales
    assert len(codes) == E, f"{len(codes)} weights for {E} experts"
    if weights.kind == "int4":
        assert codes.shape[1:] == (-(-N // PANEL), -(-K // GROUP), PANEL * GROUP // 2), f"{codes.shape} for {N} x {K}"
        codes = codes.view(torch.int32)
    else:
        assert codes.shape[1:] == (N, K), f"{codes.shape} for {N} x {K}"
    x_MK, out_MN = x_MK.contiguous(), x_MK.new_empty(M, N)
    if not M or not N:
        return out_MN
    block_M, block_N, block_K = block_sizes(weights.kind, M, N, E)
    scales = codes if scales is None else scales.contiguous()
    with on_device_of(x_MK):
        grouped_matmul_kernel[(triton.cdiv(N, block_N), E)](
            x_MK,
            codes,
            scales,
            x_MK if bias_N is None else bias_N.contiguous(),
            out_MN,
            x_MK if counts_E is None else counts_E.cumsum(0),
            M,
            N,
            K,
            codes[0].numel(),
            scales[0].numel(),
            KIND=weights.kind,
            IS_GROUPED=counts_E is not None,
            HAS_BIAS=bias_N is not None,
            BLOCK_M=block_M,
            BLOCK_N=block_N,
            BLOCK_K=block_K,
            num_warps=4,
            num_stages=4,
            enable_fp_fusion=True,
        )
    return out_MN


def block_sizes(kind: WeightKind, M: int, N: int, E: int) -> tuple[int, int, int]:
    """Return the rows, outputs and inputs that a program multiplies at a time."""
    rows = M / E
    block_M = 16 if rows <= 16 else 32 if rows <= MOST_ROWS_IN_SMALL_BLOCKS else 64
    block_N = 32 if E == 1 and N <= NARROW else 64
    return block_M, block_N, GROUP if kind == "int4" else 64


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which kernels are launched on the device of a tensor. Triton takes PyTorch's current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@triton.jit(do_not_specialize=["num_rows"])
def grouped_matmul_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    ends_ptr,  # [E], the index after each expert's last row
    num_rows,
    N,
    K,
    codes_of_expert,  # elements between two experts
    scales_of_expert,
    KIND: tl.constexpr,
    IS_GROUPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    expert = tl.program_id(1).to(tl.int64)
    first, last = expert * 0, expert * 0 + num_rows
    if IS_GROUPED:
        first = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
        last = tl.load(ends_ptr + expert)
    codes_ptr += expert * codes_of_expert
    scales_ptr += expert * scales_of_expert
    n_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output_N = n_N < N
    panel_N, lane_N = n_N // 16, n_N % 16
    num_groups = tl.cdiv(K, 32)
    word_W, input_I = tl.arange(0, WORDS), tl.arange(0, INPUTS)
    shift_I = input_I // 2 * 4 + input_I % 2 * 16
    for start in range(first, last, BLOCK_M):
        row_M = start + tl.arange(0, BLOCK_M)
        is_row_M = row_M < last
        sum_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            k_K = k + tl.arange(0, BLOCK_K)
            x_MK = tl.load(
                x_ptr + row_M[:, None] * K + k_K[None, :], mask=is_row_M[:, None] & (k_K < K)[None, :], other=0.0
            )
            if KIND == "int4":
                block_N = panel_N * num_groups + k // 32
                word_WN = tl.load(
                    codes_ptr + (block_N * 4)[None, :] * 16 + word_W[:, None] * 16 + lane_N[None, :],
                    mask=is_output_N[None, :],
                    other=0,
                )
                code_WIN = (word_WN[:, None, :] >> shift_I[None, :, None]) & 15
                weight_KN = (tl.reshape(code_WIN, (BLOCK_K, BLOCK_N)) - 8).to(tl.float32).to(x_MK.dtype)
                scale_N = tl.load(scales_ptr + block_N * 16 + lane_N, mask=is_output_N, other=0.0).to(tl.float32)
                sum_MN += tl.dot(x_MK, weight_KN) * scale_N[None, :]
            else:
                weight_KN = tl.load(
                    codes_ptr + n_N[None, :].to(tl.int64) * K + k_K[:, None],
                    mask=is_output_N[None, :] & (k_K < K)[:, None],
                    other=0,
                )
                if KIND == "int8":
                    weight_KN = weight_KN.to(tl.float32)
                sum_MN = tl.dot(x_MK, weight_KN.to(x_MK.dtype), sum_MN)
        if KIND == "int8":
            sum_MN *= tl.load(scales_ptr + n_N, mask=is_output_N, other=0.0)[None, :]
        if HAS_BIAS:
            sum_MN += tl.load(bias_ptr + n_N, mask=is_output_N, other=0.0).to(tl.float32)[None, :]
        tl.store(
            out_ptr + row_M[:, None] * N + n_N[None, :],
            sum_MN.to(out_ptr.dtype.element_ty),
            mask=is_row_M[:, None] & is_output_N[None, :],
        )


def check_product(device: torch.device) -> None:
    """Run a product of every kind on a device. Raise an error if it cannot be run or gives a wrong result."""
    kinds: tuple[Kind, ...] = ("int4", "int8")
    x_MK = torch.eye(32, dtype=torch.bfloat16, device=device)[:3]
    for kind in kinds:
        # Weights of whole numbers are exact: each row has all numbers from -8 to 7, at other places than its neighbors.
        index = torch.arange(32, device=device)
        weight_NK = ((5 * index[:, None] + index[:, None] // 16 + index) % 16 - 8).float()
        if kind == "int8":
            weight_NK[:, 0] = -127
        found_MN = multiply(x_MK, Weights.of_layer(quantize(weight_NK, kind), 32))
        if not torch.equal(found_MN.float(), weight_NK.T[:3]):
            raise ArithmeticError(f"a product with {kind} weights is wrong")
