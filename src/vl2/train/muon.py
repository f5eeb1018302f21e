"""Muon: momentum whose matrix is made orthogonal, so that every direction of a weight moves alike.

A small model that starts from random weights learns from far fewer steps by it than by AdamW. It is for the matrices
inside the blocks; tables, heads, routers and vectors stay with AdamW. The update is scaled to the size that AdamW's
usually has, so that both take one learning rate and one decay. Matrices that are stored as one, gate and up, or query,
key and value, are made orthogonal each by itself: so they were before they were joined, and it is half the work. Ranks
that hold the same weights share it out: each takes a part of the matrices, and all get the results.

Source: Jordan et al. 2024 (Muon, the iteration and its coefficients); arXiv 2502.16982 (the scale, the decay).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vl2.train.flops import product_dtype
from vl2.train.ranks import ONE, Ranks

MOMENTUM = 0.95
RMS = 0.2  # of AdamW's usual update
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


_JOINED = {"gate_up_proj": 2, "qkv.weight": 3}


def each(name: str, tensor: Tensor) -> Tensor:
    """Return a view of a parameter [..., n * M, N] in which the n matrices that it joins are a stack [..., n, M, N]."""
    number = next((number for end, number in _JOINED.items() if name.endswith(end)), 1)
    return tensor.unflatten(-2, (number, -1)) if number > 1 else tensor


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices [..., M, N] with the same singular vectors, and singular values within 0.7 to 1.2.

    Newton-Schulz iteration: matrix products alone, in bfloat16 where the device has products of it. Zero stays zero.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if is_tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(product_dtype(x.device))
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if is_tall else x


def orthogonalise_over(matrices: Tensor, ranks: Ranks) -> Tensor:
    """Return what `orthogonalise` does. All ranks call it with the same matrices, and each works on a part of them."""
    if ranks.size == 1:
        return orthogonalise(matrices)
    flat = matrices.flatten(0, -3)
    counts = [len(part) for part in torch.arange(len(flat)).tensor_split(ranks.size)]
    own = orthogonalise(flat.split(counts)[ranks.rank]).flatten(1)
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
    """Update matrices, or stacks of them [..., M, N], by their gradients. In place; the momenta too.

    Those of one shape are worked on together. `ranks` hold the same matrices, momenta and gradients.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for number, (gradient, momentum) in enumerate(zip(gradients, momenta, strict=True)):
        momentum.lerp_(gradient, 1 - MOMENTUM)
        by_shape.setdefault(gradient.shape, []).append(number)
    for shape, numbers in by_shape.items():
        ahead = [gradients[n].lerp(momenta[n], MOMENTUM) for n in numbers]  # Nesterov's
        scale = RMS * max(shape[-2:]) ** 0.5
        for n, update in zip(numbers, orthogonalise_over(torch.stack(ahead), ranks).unbind(), strict=True):
            masters[n].mul_(1 - learning_rate * weight_decay).add_(update, alpha=-learning_rate * scale)
