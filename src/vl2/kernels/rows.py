"""How many rows a pass has, by which kernels are chosen."""

from __future__ import annotations

from torch import Tensor

# Rows of different requests that may take a decoding step together.
MAX_DECODED_ROWS = 64


def is_decode_step(x: Tensor) -> bool:
    """Whether these are one row of each of several requests, [B, 1, ...], and not many of one, [1, S, ...].

    Rows without a batch, [N, ...], are taken for those of several requests.
    """
    return x.dim() < 3 or x.shape[-2] == 1
