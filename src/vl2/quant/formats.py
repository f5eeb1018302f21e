"""Quantize a weight [..., N, K] (N outputs, K inputs) to int8 or int4, and dequantize it. The layouts are defined here.

int8: codes int8 [..., N, K], scales float32 [..., N]; w = code * scale of its row. Codes are -127 to 127. This takes
8.03 bits per weight.

int4: every 32 weights of a row (a group) share a float16 scale; w = (code - 8) * scale. Codes are 0 to 15. They are
stored in blocks of 16 rows by one group, 256 bytes, so that a 512-bit register processes 16 rows at once:

    codes  uint8   [..., ceil(N / 16), ceil(K / 32), 256]
    scales float16 [..., ceil(N / 16), ceil(K / 32), 16]

Byte b of a block belongs to 16-bit word b // 2; of the word's four codes, code j (bits 4j to 4j + 3) is the weight of
row word % 32 // 2 and input 2 * (4 * (word // 32) + j) + word % 2. Shifting 32 words right by 4j therefore puts two
neighboring inputs of 16 rows into their low bits. Padding rows have scale 0 and padding inputs have code 8, so that
their weights are 0. This takes 4.5 bits per weight.

Both formats are symmetric: for the weights of trained models an offset per group reduces the error only a little, and
it costs a sum over the inputs in every matmul. The code is plain PyTorch, but on a CPU the kernels quantize and
dequantize int4 if they are available; tests check that both give equal results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vl2.errors import UserError
from vl2.kernels import load_kernels

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = get_args(Kind)

GROUP = 32  # number of inputs that share a scale
PANEL = 16  # number of rows in a block
BLOCK_BYTES = PANEL * GROUP // 2
CHUNK = 1 << 20  # weights quantized at a time, so that the float32 intermediates stay in the processor's cache
# Candidate scales, as fractions of the scale that just represents a group's largest weight. Clipping the largest weight
# a little reduces the error of the other 31. More candidates reduce the error by less than a thousandth.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
INT4_BIAS = 8


@dataclass(frozen=True)
class Quantized:
    """A weight in one of the two formats; the module docstring gives the shapes of codes and scales."""

    kind: Kind
    codes: Tensor
    scales: Tensor

    def rows(self, first: int, last: int) -> Quantized:
        """Return the rows `first` to `last` of a matrix. For int4 both must be multiples of PANEL, or the end."""
        if self.kind == "int4":
            first, last = first // PANEL, -(-last // PANEL)
        return Quantized(self.kind, self.codes[first:last], self.scales[first:last])


@dataclass(frozen=True)
class Leaf:
    """Shape and type of a tensor of codes or scales."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def storage(kind: Kind, shape: tuple[int, ...]) -> tuple[Leaf, Leaf]:
    """Return the shapes and types of the codes and scales of a weight with shape [..., N, K]."""
    *stack, N, K = shape
    if kind == "int8":
        return Leaf((*stack, N, K), torch.int8), Leaf((*stack, N), torch.float32)
    grid = (*stack, -(-N // PANEL), -(-K // GROUP))
    return Leaf((*grid, BLOCK_BYTES), torch.uint8), Leaf((*grid, PANEL), torch.float16)


def weight_bytes(kind: Kind, shape: tuple[int, ...]) -> int:
    """Return the bytes of a quantized weight with shape [..., N, K]."""
    return sum(torch.Size(leaf.shape).numel() * leaf.dtype.itemsize for leaf in storage(kind, shape))


def quantize(weight: Tensor, kind: Kind) -> Quantized:
    """Quantize a weight [..., N, K]. Raise UserError if it holds numbers that are not finite or too large."""
    *stack, N, K = weight.shape
    flat = weight.detach().reshape(-1, N, K)
    parts = [_int8(matrix) if kind == "int8" else _int4(matrix) for matrix in flat]
    codes, scales = (torch.stack(tensors).unflatten(0, tuple(stack) or (1,)) for tensors in zip(*parts, strict=True))
    if not bool(scales.isfinite().all()):
        raise UserError(f"numbers that are not finite, or too large for {kind}, cannot be quantized")
    return Quantized(kind, codes, scales) if stack else Quantized(kind, codes[0], scales[0])


def dequantize(quantized: Quantized, N: int, K: int, dtype: torch.dtype) -> Tensor:
    """Return the weights [..., N, K], computed in float32 and rounded once to `dtype`."""
    codes, scales = quantized.codes, quantized.scales
    if quantized.kind == "int8":
        return codes.float().mul_(scales.unsqueeze(-1)).to(dtype)
    kernels = load_kernels() if codes.device.type == "cpu" else None
    if kernels is None or codes.ndim != 3:
        return dequantize_int4_plainly(quantized, N, K).to(dtype)
    codes, scales = codes.contiguous(), scales.contiguous()
    if dtype == torch.bfloat16:
        rounded, threads = torch.empty(N, K, dtype=dtype), torch.get_num_threads()
        if kernels.unpack_int4(codes.data_ptr(), scales.data_ptr(), N, K, rounded.data_ptr(), threads):
            return rounded
    out = torch.empty(N, K)
    kernels.from_int4(codes.data_ptr(), scales.data_ptr(), N, K, out.data_ptr(), torch.get_num_threads())
    return out.to(dtype)


def dequantize_int4_plainly(quantized: Quantized, N: int, K: int) -> Tensor:
    """Return int4 weights [..., N, K] as float32, computed in PyTorch without the kernels."""
    codes, scales = quantized.codes, quantized.scales
    values = (unpack(codes).float() - INT4_BIAS).unflatten(-1, (-1, GROUP))  # [..., P * 16, G, 32]
    by_row = scales.transpose(-1, -2).flatten(-3, -2).float()  # [..., P * 16, G]
    whole: Tensor = (values * by_row.unsqueeze(-1)).flatten(-2)[..., :N, :K]
    return whole


def pack(codes: Tensor) -> Tensor:
    """Pack codes 0..15, uint8 [..., P * 16, G * 32], into blocks: uint8 [..., P, G, 256]."""
    # The index of an input in its group is 8 * load + 2 * j + half, as the module docstring defines.
    axes = codes.unflatten(-1, (-1, 4, 4, 2)).unflatten(-5, (-1, PANEL))  # [..., P, row, G, load, j, half]
    words = axes.movedim(-5, -3).transpose(-1, -2)  # [..., P, G, load, row, half, j]
    low, high = words[..., 0::2], words[..., 1::2]  # two codes per byte, the first in the low bits
    blocks: Tensor = (low | high << 4).flatten(-4).contiguous()
    return blocks


def unpack(blocks: Tensor) -> Tensor:
    """Unpack blocks, uint8 [..., P, G, 256], to codes 0..15: uint8 [..., P * 16, G * 32]. Inverse of `pack`."""
    pairs = torch.stack((blocks & 15, blocks >> 4), dim=-1)  # [..., P, G, 256, 2]
    axes = pairs.unflatten(-2, (4, PANEL, 2, 2)).flatten(-2)  # [..., P, G, load, row, half, j]
    ordered = axes.transpose(-1, -2).movedim(-3, -5)  # [..., P, row, G, load, j, half]
    codes: Tensor = ordered.flatten(-4).flatten(-3, -2)
    return codes


def _int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.empty(weight_NK.shape, dtype=torch.int8, device=weight_NK.device)
    scales = torch.empty(len(weight_NK), dtype=torch.float32, device=weight_NK.device)
    step = max(1, CHUNK // weight_NK.shape[1])
    for start in range(0, len(weight_NK), step):
        part = weight_NK[start : start + step].float()
        scales[start : start + step] = part.abs().amax(dim=1) / 127
        inverse = 1 / scales[start : start + step].clamp(min=1e-30)
        codes[start : start + step] = (part * inverse[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return codes, scales


def _int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    kernels = load_kernels() if weight_NK.device.type == "cpu" else None
    if kernels is None or weight_NK.dtype not in (torch.bfloat16, torch.float32):
        return int4_plainly(weight_NK)
    codes, scales = (torch.empty(leaf.shape, dtype=leaf.dtype) for leaf in storage("int4", tuple(weight_NK.shape)))
    weight_NK, shares = weight_NK.contiguous(), torch.tensor(SHARES)
    kernels.to_int4(
        weight_NK.data_ptr(), weight_NK.dtype == torch.float32, *weight_NK.shape, shares.data_ptr(), len(shares),
        codes.data_ptr(), scales.data_ptr(),
    )  # fmt: skip
    return codes, scales


def int4_plainly(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int4 codes and scales of a matrix, computed in PyTorch without the kernels."""
    codes_leaf, scales_leaf = storage("int4", tuple(weight_NK.shape))
    codes = torch.empty(codes_leaf.shape, dtype=torch.uint8, device=weight_NK.device)
    scales = torch.empty(scales_leaf.shape, dtype=torch.float16, device=weight_NK.device)
    K = weight_NK.shape[1]
    panels = max(1, CHUNK // (PANEL * K))
    for start in range(0, len(codes), panels):
        rows = weight_NK[start * PANEL : (start + panels) * PANEL].float()
        padded = F.pad(rows, (0, -K % GROUP, 0, -len(rows) % PANEL))
        groups = padded.unflatten(1, (-1, GROUP))
        chosen = _choose_scales(groups)
        four_bits = _rounded(groups, chosen.float()).add_(INT4_BIAS).to(torch.uint8).flatten(1)
        codes[start : start + panels] = pack(four_bits)
        scales[start : start + panels] = chosen.unflatten(0, (-1, PANEL)).transpose(1, 2)
    return codes, scales


def _choose_scales(groups: Tensor) -> Tensor:
    """Return for every group of [rows, G, 32] the candidate scale with the least squared error, float16 [rows, G]."""
    high, low = groups.amax(dim=-1), groups.amin(dim=-1)
    # Codes minus the bias are -8 to 7. The sign of the scale puts the side with the larger magnitude at -8.
    furthest = torch.where(high > -low, high, low) / -INT4_BIAS
    best = furthest.to(torch.float16)
    least = _squared_error(groups, best)
    for share in SHARES[1:]:
        scales = (furthest * share).to(torch.float16)
        error = _squared_error(groups, scales)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    return best


def _squared_error(groups: Tensor, scales: Tensor) -> Tensor:
    wide = scales.float()
    error = _rounded(groups, wide).mul_(wide.unsqueeze(-1)).sub_(groups)
    norm: Tensor = torch.linalg.vector_norm(error, dim=-1)
    return norm.square_()


def _rounded(groups: Tensor, scales: Tensor) -> Tensor:
    inverse = torch.where(scales == 0, 0, 1 / scales)
    rounded: Tensor = (groups * inverse.unsqueeze(-1)).round_().clamp_(-INT4_BIAS, INT4_BIAS - 1)
    return rounded
