"""Round float32 values stochastically to bfloat16, with random bits that do not depend on how a tensor is sharded.

A value becomes one of its two bfloat16 neighbors, and on average itself. So changes far below the distance between two
bfloat16 numbers are not lost: a weight takes a thousand of them as a tenth of that many whole steps.

The random bits of an element are a hash of a seed and of the element's index in the whole tensor. Therefore ranks that
hold the same element round it alike, a resumed run repeats the rounding of the run it continues, and so does a run that
continues with the weights divided otherwise.

Source: Wellons, hash-prospector (the multipliers and shifts of the hash, in the public domain).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 32) - 1
_MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)  # below 2^31, so that products of 32 bits fit into int64


def seed_of(*parts: object) -> int:
    """Return a seed of 32 bits."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def random_bits(shape: Sequence[int], origin: Sequence[int], whole: Sequence[int], seed: int, like: Tensor) -> Tensor:
    """Return 32 random bits for each element of a block, int64 in 0..2^32 - 1, on the device of `like`.

    The block begins at `origin` of a tensor of shape `whole`.
    """
    bits = torch.zeros((), dtype=torch.int64, device=like.device)
    stride = 1
    for axis in reversed(range(len(shape))):
        along = (torch.arange(shape[axis], device=like.device) + origin[axis]) * stride
        bits = bits + along.view(-1, *[1] * (len(shape) - 1 - axis))
        stride *= whole[axis]
    bits = (bits & _MASK) ^ seed
    bits ^= bits >> 16
    for multiplier, shift in zip(_MULTIPLIERS, (15, 15), strict=True):
        bits *= multiplier
        bits &= _MASK
        bits ^= bits >> shift
    return bits


def round_at_random(values: Tensor, bits: Tensor) -> Tensor:
    """Round float32 values to bfloat16 by the lower 16 of `bits`. Infinity and NaN stay what they are."""
    raw = values.contiguous().view(torch.int32)
    # bfloat16 is the upper half of float32, so a carry out of the lower half rounds away from zero.
    rounded = ((raw + (bits & 0xFFFF).to(torch.int32)) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)
