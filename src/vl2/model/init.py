"""Initial weights for training from scratch: the released initializers, and fan-in scaling in the encoder.

The encoder's positions start as sine and cosine waves along both axes, about as large as the embedded patches to which
they are added. From small random positions it takes thousands of steps until a patch finds its neighbors, and until
then nothing that spans two patches is recognized. Source: arXiv 2205.01580, section 3.

The language model draws from a normal distribution with the configured `initializer_range`. The newline and separator
vectors have standard deviation 1 / sqrt(D), as released. The paper starts the encoder from SigLIP's weights and
describes no random ones, so the encoder's initialization is our choice.
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
    """Fill every weight in place from one generator. The same seed gives the same weights on every machine."""
    generator = torch.Generator().manual_seed(seed)
    # Newline and separator, the only names without a dot, are drawn last.
    for name, parameter in sorted(model.named_parameters(), key=lambda named: "." not in named[0]):
        parameter.copy_(initial_values(name, parameter.shape, model.config, generator))


def initial_values(name: str, shape: Sequence[int], config: ModelConfig, generator: torch.Generator) -> Tensor:
    """Return float32 initial values for the parameter of this name, or for one matrix of stacked experts."""
    if name.endswith("pos_embed"):
        return wave_positions(math.isqrt(math.prod(shape[:-1])), shape[-1]).view(*shape)
    if "." not in name:  # newline and separator
        deviation = config.projector_config.n_embed**-0.5
    elif len(shape) == 1 and not name.endswith("class_embedding"):
        return torch.ones(*shape) if name.endswith(".weight") else torch.zeros(*shape)  # norm weights and biases
    elif name.startswith(("vision.", "projector.")) and name.endswith(".weight") and "embedding" not in name:
        deviation = math.prod(shape[1:]) ** -0.5
    else:
        deviation = config.language_config.initializer_range
    return torch.empty(*shape).normal_(0.0, deviation, generator=generator)


def wave_positions(side: int, width: int) -> Tensor:
    """Return position embeddings of `side` x `side` patches, row by row, [side^2, width].

    The first half of the channels holds sines and cosines of the column, the second half those of the row. Wavelengths
    range from 2 pi patches to 10,000 times that.
    """
    half = width // 2
    frequencies = 10_000.0 ** -(torch.arange(half // 2) / (half // 2))
    angles = torch.arange(side).float()[:, None] * frequencies
    waves = torch.zeros(side, half)
    waves[:, : half // 2], waves[:, half // 2 : 2 * (half // 2)] = angles.sin(), angles.cos()
    positions = torch.zeros(side, side, width)
    positions[..., :half], positions[..., half : 2 * half] = waves[None], waves[:, None]
    return positions.flatten(0, 1)
