"""The devices that a test runs on: the CPU always, that no body may wait for a card, and a card where there is one."""

from __future__ import annotations

import pytest
import torch

from vl2.model.moe import has_grouped_mm

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
has_kernel = torch.cuda.is_available() and has_grouped_mm(torch.cuda.get_device_capability(), torch.version.hip)
needs_graphs = pytest.mark.skipif(not has_kernel, reason="no CUDA device of compute capability 9 or 10")

CPU_AND_CARD = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
CPU_AND_CARD_WITH_GRAPHS = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_graphs])]


def without_tf32() -> None:
    """Let a card multiply float32 as such from here on: by default it rounds what enters convolutions to 19 bits."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
