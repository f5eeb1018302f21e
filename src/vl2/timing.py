"""How long something takes on a device, whose work goes on after a call has returned."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_when_done(device: torch.device) -> float:
    """Return the clock's seconds once the device has done all that it was given."""
    wait_for(device)
    return time.perf_counter()


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the shortest of some runs, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time_when_done(device)
        run()
        times.append(time_when_done(device) - start)
    return min(times[1:])
