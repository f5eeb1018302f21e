"""The Muon optimizer: momentum with orthogonalized matrices, so that the update is equally large in all directions.

A small model with random weights needs far fewer steps with Muon than with AdamW. Muon updates the matrices inside the
blocks; embeddings, heads, routers and vectors use AdamW. The update is scaled to the usual RMS of AdamW's, so that both
use the same learning rate and weight decay. Matrices that are stored as one parameter (gate and up; query, key and
value) are orthogonalized separately, because they are separate maps; this also halves the work. Ranks with the same
weights divide the matrices among themselves and exchange the results.

Source: Jordan et al. 2024 (Muon, the iteration and its coefficients); arXiv 2502.16982 (the scale, the decay).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vl2.train.flops import matmul_dtype
from vl2.train.ranks import ONE, Ranks

MOMENTUM = 0.95
RMS = 0.2  # the usual RMS of AdamW's update
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


_JOINED = {"gate_up_proj": 2, "qkv.weight": 3}


def split_joined(name: str, tensor: Tensor) -> Tensor:
    """Return a view of a parameter [..., n * M, N] that joins n matrices as a stack [..., n, M, N]."""
    number = next((number for end, number in _JOINED.items() if name.endswith(end)), 1)
    return tensor.unflatten(-2, (number, -1)) if number > 1 else tensor


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices [..., M, N] with the same singular vectors, and singular values between 0.7 and 1.2.

    The Newton-Schulz iteration uses matrix products only, in bfloat16 if the device supports it. Zero stays zero.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if is_tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(matmul_dtype(x.device))
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if is_tall else x


def orthogonalize_over(matrices: Tensor, ranks: Ranks) -> Tensor:
    """Return `orthogonalize(matrices)`. All ranks call it with the same matrices and compute a part each."""
    if ranks.size == 1:
        return orthogonalize(matrices)
    flat = matrices.flatten(0, -3)
    counts = [len(part) for part in torch.arange(len(flat)).tensor_split(ranks.size)]
    own = orthogonalize(flat.split(counts)[ranks.rank]).flatten(1)
    arriving = ranks.start_exchange(own.repeat(ranks.size, 1), [len(own)] * ranks.size, counts)
    return arriving.wait().view_as(matrices)


@torch.no_grad()
def muon_(
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    learning_rate: float,
    weight_decay: float,
    ranks: Ranks = ONE,
) -> None:
    """Update matrices, or stacks of matrices [..., M, N], and their momenta by their gradients. In place.

    Matrices of equal shape are processed together. All `ranks` hold the same matrices, momenta and gradients.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for number, (gradient, momentum) in enumerate(zip(gradients, momenta, strict=True)):
        momentum.lerp_(gradient, 1 - MOMENTUM)
        by_shape.setdefault(gradient.shape, []).append(number)
    for shape, numbers in by_shape.items():
        ahead = [gradients[n].lerp(momenta[n], MOMENTUM) for n in numbers]  # Nesterov momentum
        scale = RMS * max(shape[-2:]) ** 0.5
        for n, update in zip(numbers, orthogonalize_over(torch.stack(ahead), ranks).unbind(), strict=True):
            masters[n].mul_(1 - learning_rate * weight_decay).add_(update, alpha=-learning_rate * scale)
