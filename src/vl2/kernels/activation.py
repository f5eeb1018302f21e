"""The activations that a product of the kernels may end with, and what each of them is in PyTorch."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional as F


class Activation(IntEnum):
    """The numbers are those of csrc/simd.h."""

    NONE = 0
    GELU_TANH = 1  # of SigLIP
    GELU = 2  # of SAM
    QUICK_GELU = 3  # of CLIP: x * sigmoid(1.702 x)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Return the activation of x by PyTorch's own operations."""
    if activation == Activation.NONE:
        return x
    if activation == Activation.QUICK_GELU:
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == Activation.GELU_TANH else "none")
