"""Decoding by graphs on any device: where there are none, the step that would be recorded is run in their place."""

from __future__ import annotations

import pytest
import torch

from vl2.model import VL2
from vl2.runtime import cuda
from vl2.runtime.cuda import CudaGraphRunner, FixedStep, Recorder, Replay

Shape = tuple[int, int]  # rows, and positions that each looks at


class Again:
    """Stands where a recorder would."""

    def __init__(self, device: torch.device) -> None:
        pass

    def record(self, step: FixedStep) -> Replay:
        return step.run


class Counted:
    """A recorder that notes of each recording what it is for."""

    def __init__(self, recorder: Recorder | Again, shapes: list[Shape]) -> None:
        self._recorder, self._shapes = recorder, shapes

    def record(self, step: FixedStep) -> Replay:
        self._shapes.append((len(step.place_B), len(step._key_L)))
        return self._recorder.record(step)


def of_float32(model: VL2) -> str | None:
    return None if model.dtype == torch.float32 else "in this test graphs are for float32"


def count_recordings(device: str, monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """Let models decode by graphs, on a CPU those of float32, and return the list of what is recorded."""
    shapes: list[Shape] = []
    made = Recorder if device == "cuda" else Again
    monkeypatch.setattr(cuda, "Recorder", lambda device: Counted(made(device), shapes))
    if device == "cpu":
        monkeypatch.setattr(CudaGraphRunner, "refusal", staticmethod(of_float32))
    return shapes
