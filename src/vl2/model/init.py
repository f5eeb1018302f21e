"""Initial weights for training from scratch: the released initializers, and fan-in scaling in the encoder.

The encoder's positions start as waves along both sides, as large as the patches that they place. From small random
ones it takes thousands of steps until a patch finds its neighbors, and until then nothing that lies over two patches
is recognized. Source: arXiv 2205.01580, section 3.

The language model draws from a normal distribution with the configured `initializer_range`, the newline
and separator vectors with deviation 1 / sqrt(D), as released. The paper starts the encoder from SigLIP's
weights and says nothing of random ones, so there the choice is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vl2.config import ModelConfig
from vl2.model.vl2 import VL2


@torch.no_grad()
def init_weights(model: VL2, seed: int) -> None:
    """Fill every weight from one generator. In place; the same seed gives the same weights on every machine."""
    generator = torch.Generator().manual_seed(seed)
    # The two vectors of the layout last.
    for name, parameter in sorted(model.named_parameters(), key=lambda named: "." not in named[0]):
        parameter.copy_(initial_values(name, parameter.shape, model.config, generator))


def initial_values(name: str, shape: Sequence[int], config: ModelConfig, generator: torch.Generator) -> Tensor:
    """Return float32 initial values for the parameter of this name, or for one matrix of stacked experts."""
    if name.endswith("pos_embed"):
        return wave_positions(math.isqrt(math.prod(shape[:-1])), shape[-1]).view(*shape)
    if "." not in name:  # newline and separator
        deviation = config.projector_config.n_embed**-0.5
    elif len(shape) == 1 and not name.endswith("class_embedding"):
        return torch.ones(*shape) if name.endswith(".weight") else torch.zeros(*shape)  # of a norm; a bias
    elif name.startswith(("vision.", "projector.")) and name.endswith(".weight") and "embedding" not in name:
        deviation = math.prod(shape[1:]) ** -0.5
    else:
        deviation = config.language_config.initializer_range
    return torch.empty(*shape).normal_(0.0, deviation, generator=generator)


def wave_positions(side: int, width: int) -> Tensor:
    """Return the positions of `side` x `side` patches, row by row, [side^2, width]: sines and cosines of the column in
    the first half, of the row in the second. Wavelengths go from one patch times 2 pi to 10,000 times that."""
    half = width // 2
    frequencies = 10_000.0 ** -(torch.arange(half // 2) / (half // 2))
    angles = torch.arange(side).float()[:, None] * frequencies
    waves = torch.zeros(side, half)
    waves[:, : half // 2], waves[:, half // 2 : 2 * (half // 2)] = angles.sin(), angles.cos()
    positions = torch.zeros(side, side, width)
    positions[..., :half], positions[..., half : 2 * half] = waves[None], waves[:, None]
    return positions.flatten(0, 1)
