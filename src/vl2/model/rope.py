"""Rotary position embedding: angles in float32, computed from integer positions whenever they are needed.

Nothing is stored in the module, so no cast of the model can touch the angles. The released code keeps
them in a buffer that `model.to(bfloat16)` rounds, which ruins the latent-attention sizes past
position 256. Golden: cache_L_0 in tests/golden/reference/model (rotated keys).
"""

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]  # cosines and sines, float32 [B, S, C/2]


def rotary_angles(positions_BS: Tensor, dim: int, theta: float) -> Angles:
    """Return cosine and sine of position * theta^(-2i/dim) for every pair i of channels."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_BS.device) / dim
    angles_BSC = positions_BS.to(torch.float32).unsqueeze(-1) * (1.0 / theta**exponent)
    return angles_BSC.cos(), angles_BSC.sin()


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
    cos, sin = (a.unsqueeze(2) for a in angles)  # one head axis
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
