"""Choose the runner of a model: the first in the list that supports it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vl2.model import VL2
from vl2.model.int8_cache import AS_MODEL, check_cache
from vl2.runtime.cpu import CpuRunner
from vl2.runtime.cuda import CudaGraphRunner
from vl2.runtime.gpu import GpuKernelRunner
from vl2.runtime.plain import PlainRunner
from vl2.runtime.runner import Runner

RUNNERS: tuple[type[CudaGraphRunner] | type[GpuKernelRunner] | type[CpuRunner] | type[PlainRunner], ...] = (
    CudaGraphRunner,
    GpuKernelRunner,
    CpuRunner,
    PlainRunner,
)


def choose_runner(model: VL2, *, cache: str = AS_MODEL) -> Runner:
    """Return the fastest runner that supports a model in evaluation mode. The model is not changed.

    `cache` is the form of the key-value cache, "auto" or "int8". Raise UserError if the device does not support it.
    """
    form = check_cache(cache, model.device)
    return next(runner for runner in RUNNERS if runner.refusal(model) is None)(model, form)


def explain_choice(runner: Runner, model: VL2) -> list[str]:
    """Return one line each: the name of a model's runner, why each faster runner refuses, and the runner's notes."""
    return [*_explained(runner.name, [other.refusal(model) for other in RUNNERS]), *runner.notes]


def explain_on(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return one line each: the usual runner for a dtype on a device, and why each faster runner refuses."""
    refusals = [other.refusal_on(device, dtype) for other in RUNNERS]
    return _explained(RUNNERS[refusals.index(None)].name, refusals)


def _explained(name: str, refusals: Sequence[str | None]) -> list[str]:
    first = [other.name for other in RUNNERS].index(name)
    return [name, *(f"not {RUNNERS[i].name}: {refusals[i]}" for i in range(first))]
