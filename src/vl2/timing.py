"""Time work on a device that runs asynchronously: wait for it before reading the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def wait_for(device: torch.device) -> None:
    """Block until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_when_done(device: torch.device) -> float:
    """Wait for the device, then return `time.perf_counter()` in seconds."""
    wait_for(device)
    return time.perf_counter()


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` runs, after one warm-up run."""
    times = []
    for _ in range(repeats + 1):
        start = time_when_done(device)
        run()
        times.append(time_when_done(device) - start)
    return min(times[1:])
