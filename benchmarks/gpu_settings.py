"""What the parts of `gpu.sh` share: a figure, the sizes of a run, a model, and the time on a device."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from vl2.config import preset
from vl2.model import VL2, init_weights


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The device and the sizes of a run."""

    device: torch.device
    dtype: torch.dtype
    size: str
    batches: tuple[int, ...]
    num_tokens: int  # decoded
    context: int  # positions before them
    seq_len: int  # of a training sequence
    num_steps: int

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, *, is_smoke: bool) -> Settings:
        if is_smoke:
            return cls(
                device=device, dtype=dtype, size="nano", batches=(1, 2), num_tokens=4, context=8,
                seq_len=128, num_steps=1,
            )  # fmt: skip
        return cls(
            device=device, dtype=dtype, size="tiny", batches=(1, 8, 32, 128), num_tokens=128, context=1024,
            seq_len=4096, num_steps=5,
        )  # fmt: skip


def random_model(settings: Settings, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> VL2:
    model = VL2(preset(settings.size))
    with torch.no_grad():
        init_weights(model, seed=0)
    return model.to(dtype or settings.dtype).to(device or settings.device)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
