"""The runner with Triton kernels, for NVIDIA cards: plain PyTorch with the modules of `gpu_modules`.

It runs models for which no CUDA graph can be recorded, and those in float16.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from vl2.model import VL2
from vl2.model.int8_cache import AS_MODEL, CacheForm
from vl2.runtime import gpu_kernels
from vl2.runtime.gpu_modules import with_gpu_kernels
from vl2.runtime.plain import PlainRunner


class GpuKernelRunner(PlainRunner):
    """Run the passes by calling the model with Triton kernels. See `Runner` for the methods."""

    name: ClassVar[str] = "Triton kernels"

    def __init__(self, model: VL2, cache: CacheForm = AS_MODEL) -> None:
        super().__init__(with_gpu_kernels(model), cache)

    @staticmethod
    def refusal_on(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "cuda" and dtype not in gpu_kernels.DTYPES:
            return f"the model is in {str(dtype).removeprefix('torch.')}, and the kernels take bfloat16 and float16"
        return gpu_kernels.refusal(device)

    @classmethod
    def refusal(cls, model: VL2) -> str | None:
        return cls.refusal_on(model.device, model.dtype)
