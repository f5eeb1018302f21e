"""The type in which a device multiplies matrices best."""

from __future__ import annotations

import torch

from vl2.kernels.bfloat16 import has_bfloat16_products


def product_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device has instructions for it, else float32.

    A CPU without them emulates bfloat16 products, at a tenth of the speed of float32 (Zen 3: 6.5 and 65 GFLOP/s).
    """
    return torch.float32 if device.type == "cpu" and not has_bfloat16_products() else torch.bfloat16
