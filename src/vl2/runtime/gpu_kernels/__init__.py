"""Triton kernels for NVIDIA cards: products with packed weights, grouped by expert, and the choice of experts.

The modules here import Triton, so import them only where `refusal` says that it can be used. Without a card, Triton's
interpreter runs the kernels on the CPU if TRITON_INTERPRET=1 is set before Triton is imported; the tests use this.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

from vl2.optional_imports import install_extra

DTYPES = (torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)  # of the card: bfloat16 in matrix products


@cache
def refusal(device: torch.device) -> str | None:
    """Return in one sentence why the kernels cannot run on a device, or None if they can.

    The first call for a CUDA device compiles and runs a small product there, because Triton also needs a C compiler and
    a driver of its time. This takes about a second.
    """
    if device.type != "cuda":
        return f"the model is on {device}"
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed: {install_extra('triton')}"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA cards"
    if (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        return "the kernels need compute capability {}.{}, the card has {}.{}".format(*LEAST_CAPABILITY, *capability)
    try:
        from vl2.runtime.gpu_kernels.grouped_matmul import check_product

        check_product(device)
    except Exception as error:  # whatever a compiler or driver may raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"Triton does not work here: {reason}"
    return None
