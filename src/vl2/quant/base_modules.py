"""Quantized layers that support backward passes: the frozen base weights under an adapter, in 4 or 8 bits (QLoRA).

The layers of `vl2.quant.modules` are for inference only. The layers here dequantize their weights each time they run,
once in the forward and once in the backward pass, so that only one layer's weights are dequantized at a time. Results
equal those of a plain layer with the dequantized weights bit for bit. The only difference is that autograd saves the
quantized weight for the backward pass instead of the dequantized one. Gradients flow to the input; the weights have no
gradient.

NF4: blocks of 64 weights share a scale, and each weight is one of 16 values that are evenly spaced quantiles of a
normal distribution. Double quantization: the scales are 8-bit numbers, and 256 of them share a scale. This takes 4.13
bits per weight. INT8: each row has a scale, 8 bits per weight. Source: arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.model.moe import Experts, grouped_matmul
from vl2.quant.modules import HoldsCodes

BaseKind = Literal["nf4", "int8"]
# Source: appendix E of the paper.
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK, SCALES_PER_BLOCK = 64, 256
# Number of weights that are processed at a time: intermediate results are float32, and for a whole stack of experts
# they would take too much memory.
CHUNK = 1 << 22


class NF4Weight(HoldsCodes):
    """A tensor held as 4-bit NF4 codes with doubly quantized scales."""

    codes: Tensor  # uint8 [half the padded size]; the first of two weights is in the high bits
    scale_codes: Tensor  # int8 [blocks]
    scale_scales: Tensor  # float32 [blocks / 256, rounded up]
    scale_mean: Tensor  # float32 scalar
    values: Tensor  # NF4_VALUES, kept on the device because a CUDA graph cannot copy them from the host

    def __init__(self, weight: Tensor, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, dtype or weight.dtype
        flat = weight.detach().flatten()
        absmax = torch.cat([_blocks(part, BLOCK).abs().amax(dim=1) for part in flat.split(CHUNK)])
        mean = absmax.mean()
        grouped = _blocks(absmax - mean, SCALES_PER_BLOCK)
        steps = grouped.abs().amax(dim=1).clamp(min=1e-30) / 127
        self.register_buffer("scale_codes", (grouped / steps[:, None]).round().to(torch.int8).flatten()[: len(absmax)])
        self.register_buffer("scale_scales", steps)
        self.register_buffer("scale_mean", mean)
        self.register_buffer("values", torch.tensor(NF4_VALUES, device=weight.device), persistent=False)
        borders = (self.values[1:] + self.values[:-1]) / 2
        codes = []
        for start in range(0, len(flat), CHUNK):
            blocks = _blocks(flat[start : start + CHUNK], BLOCK)
            # Round by the quantized scales, which dequantization will use. The codes then compensate a part of the
            # scales' own rounding error.
            scales = self._scales(start // BLOCK, start // BLOCK + len(blocks)).clamp(min=1e-30)
            four_bits = torch.bucketize(blocks / scales[:, None], borders).to(torch.uint8).flatten()
            codes.append(four_bits[::2] << 4 | four_bits[1::2])
        self.register_buffer("codes", torch.cat(codes))

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the weights `start` to `stop` of the flattened tensor, 1-D; `start` must be a multiple of BLOCK."""
        assert start % BLOCK == 0, f"blocks of {BLOCK} weights, got a start at {start}"
        stop = prod(self.shape) if stop is None else stop
        out = torch.empty(-(-(stop - start) // BLOCK) * BLOCK, dtype=self.dtype, device=self.codes.device)
        pairs = torch.stack((self.values.repeat_interleave(16), self.values.repeat(16)), dim=1)  # [256, 2], by byte
        for low in range(0, len(out), CHUNK):
            high = min(low + CHUNK, len(out))
            first, last = (start + low) // BLOCK, (start + high) // BLOCK
            codes = self.codes[first * BLOCK // 2 : last * BLOCK // 2]
            blocks = pairs[codes.int()].view(-1, BLOCK) * self._scales(first, last)[:, None]
            out[low:high] = blocks.flatten()
        return out[: stop - start]

    def _scales(self, first: int, last: int) -> Tensor:
        groups = torch.arange(first, last, device=self.scale_codes.device) // SCALES_PER_BLOCK
        return self.scale_codes[first:last].float() * self.scale_scales[groups] + self.scale_mean


class Int8Weight(HoldsCodes):
    """A tensor held as 8-bit codes with a scale per row."""

    codes: Tensor  # int8 [rows, width of the last axis]
    scales: Tensor  # float32 [rows]

    def __init__(self, weight: Tensor, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, dtype or weight.dtype
        rows = weight.detach().flatten(0, -2)
        scales = rows.abs().amax(dim=1).float().clamp(min=1e-30) / 127
        self.register_buffer("scales", scales)
        self.register_buffer("codes", torch.empty(rows.shape, dtype=torch.int8, device=rows.device))
        step = max(1, CHUNK // rows.shape[1])
        for low in range(0, len(rows), step):
            part = slice(low, low + step)
            self.codes[part] = (rows[part].float() / scales[part, None]).round().to(torch.int8)

    def dequantize(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return weights `start` to `stop` of the flattened tensor, 1-D; both must be multiples of the row width."""
        width = self.codes.shape[1]
        first, last = start // width, (prod(self.shape) if stop is None else stop) // width
        out = torch.empty(last - first, width, dtype=self.dtype, device=self.codes.device)
        step = max(1, CHUNK // width)
        for low in range(first, last, step):
            part = slice(low, min(low + step, last))
            out[low - first : part.stop - first] = self.codes[part].float() * self.scales[part, None]
        return out.flatten()


QuantizedWeight = NF4Weight | Int8Weight
KINDS: dict[BaseKind, type[NF4Weight] | type[Int8Weight]] = {"nf4": NF4Weight, "int8": Int8Weight}


class QuantizedBaseLinear(nn.Module):
    """A linear layer whose frozen weight is quantized."""

    def __init__(self, layer: nn.Linear, kind: BaseKind, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight: QuantizedWeight = KINDS[kind](layer.weight, dtype)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        with dequantized(self.weight) as weight:
            return F.linear(x, weight, self.bias)


class QuantizedBaseExperts(nn.Module):
    """Stacked experts whose frozen weights are quantized."""

    def __init__(self, experts: Experts, kind: BaseKind, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.gate_up_proj: QuantizedWeight = KINDS[kind](experts.gate_up_proj, dtype)
        self.down_proj: QuantizedWeight = KINDS[kind](experts.down_proj, dtype)

    def forward(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Return the outputs [N, D] of rows that are sorted by expert; expert e has `counts_E[e]` of them."""
        gate_NF, up_NF = self.gate_up(x_ND, counts_E).chunk(2, dim=-1)
        return self.down(F.silu(gate_NF) * up_NF, counts_E)

    def gate_up(self, x_ND: Tensor, counts_E: Tensor) -> Tensor:
        with dequantized(self.gate_up_proj) as weight:
            return grouped_matmul(x_ND, weight, counts_E)

    def down(self, h_NF: Tensor, counts_E: Tensor) -> Tensor:
        with dequantized(self.down_proj) as weight:
            return grouped_matmul(h_NF, weight, counts_E)


@dataclass(frozen=True, kw_only=True)
class _Again:
    """The size, stride and offset of a view of a weight, from which the backward pass restores it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@contextmanager
def dequantized(quantized: QuantizedWeight) -> Iterator[Tensor]:
    """Yield the dequantized weight. What autograd would save of it for the backward pass is dequantized again then."""
    weight = quantized.dequantize().view(quantized.shape)
    storage = weight.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Tensor | _Again:
        if saved.untyped_storage().data_ptr() != storage:
            return saved
        return _Again(size=tuple(saved.shape), stride=saved.stride(), offset=int(saved.storage_offset()))

    def unpack(kept: Tensor | _Again) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        # Autograd saves whole weights or the matrix of one expert, and both are contiguous in the flat tensor. If the
        # range does not begin and end at blocks, the whole weight is dequantized.
        count = prod(kept.size)
        start, stop = kept.offset, kept.offset + count
        if start % BLOCK or stop % BLOCK:
            start, stop = 0, prod(quantized.shape)
        return quantized.dequantize(start, stop).as_strided(kept.size, kept.stride, kept.offset - start)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield weight


def _blocks(flat: Tensor, size: int) -> Tensor:
    """Return a 1-D tensor as rows of `size`, float32, padded with zeros."""
    return F.pad(flat.float(), (0, -len(flat) % size)).view(-1, size)
