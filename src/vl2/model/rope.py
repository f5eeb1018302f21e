"""Rotary position embedding: angles in float32, computed from integer positions whenever they are needed.

Nothing is stored in the module, so no cast of the model can touch the angles. The released code keeps
them in a buffer that `model.to(bfloat16)` rounds, which ruins the latent-attention sizes past
position 256. Golden: cache_L_0 in tests/golden/reference/model (rotated keys).
"""

import math

import torch
from torch import Tensor

from vl2.rope_scaling import RopeScaling

Angles = tuple[Tensor, Tensor]  # cosines and sines, float32 [B, S, C/2]


def rotary_angles(positions_BS: Tensor, dim: int, theta: float, scaling: RopeScaling | None = None) -> Angles:
    """Return cosine and sine of position * theta^(-2i/dim) for every pair i of channels.

    With `scaling`, frequencies and amplitude are YaRN's.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_BS.device) / dim
    frequencies_C = 1.0 / theta**exponent
    if scaling is not None:
        frequencies_C = _stretched(frequencies_C, theta, scaling)
    angles_BSC = positions_BS.to(torch.float32).unsqueeze(-1) * frequencies_C
    if scaling is None or scaling.rotated_scale == 1.0:
        return angles_BSC.cos(), angles_BSC.sin()
    return angles_BSC.cos() * scaling.rotated_scale, angles_BSC.sin() * scaling.rotated_scale


def _stretched(frequencies_C: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Return YaRN's frequencies. Fast ones stay, slow ones are divided by the factor, and a linear ramp joins the two.

    Source: arXiv 2309.00071, section 3.2. The ends of the ramp are rounded as in DeepSeek-V2's released code.
    """
    dim, length = 2 * len(frequencies_C), scaling.original_max_position_embeddings

    def pair_with(turns: float) -> float:
        """Return the index, not rounded, of the channel pair that makes this many turns in the original context."""
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_with(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with(scaling.beta_slow)), dim - 1)
    pairs_C = torch.arange(len(frequencies_C), dtype=torch.float32, device=frequencies_C.device)
    slow_C = ((pairs_C - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies_C / scaling.factor * slow_C + frequencies_C * (1 - slow_C)


def rotate_halves(x_BSHC: Tensor, angles: Angles) -> Tensor:
    """Rotate channel i together with channel i + C/2, in float32.

    Used by plain multi-head attention.
    """
    first, second = x_BSHC.float().chunk(2, dim=-1)
    return _rotate(first, second, angles).to(x_BSHC.dtype)


def rotate_pairs(x_BSHC: Tensor, angles: Angles) -> Tensor:
    """Rotate channel 2i together with 2i + 1, in float32, and return all first members before all second ones.

    Used by latent attention. Queries and keys are reordered alike, so their products do not change.
    """
    pairs = x_BSHC.float().unflatten(-1, (-1, 2))
    return _rotate(pairs[..., 0], pairs[..., 1], angles).to(x_BSHC.dtype)


def _rotate(first: Tensor, second: Tensor, angles: Angles) -> Tensor:
    cos, sin = (a.unsqueeze(2) for a in angles)  # the same for all heads
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
