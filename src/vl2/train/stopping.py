"""Stop a run early: by SIGINT, SIGTERM or the time limit, agreed on by all ranks, or because a rank is lost.

After the first signal the run finishes the current step and writes a checkpoint. A second SIGINT ends the process
immediately.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import torch

from vl2.errors import RankLost
from vl2.train.checkpoint import Checkpoints, newest_checkpoint
from vl2.train.ranks import Ranks, why_lost

Ended = Literal["finished", "interrupted", "terminated", "out of time"]
_REASONS: tuple[Ended, ...] = ("out of time", "terminated", "interrupted")  # if ranks differ, the later one wins
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A context manager that records signals instead of terminating, and checks the time limit."""

    def __init__(self, minutes: float | None, ranks: Ranks, clock: Callable[[], float] = time.monotonic) -> None:
        self._ranks, self._clock = ranks, clock
        self._until = clock() + minutes * 60 if minutes is not None else float("inf")
        self._signalled: Ended | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only the main thread may set signal handlers
            self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def why(self) -> Ended | None:
        """Return the reason to stop now, or None. All ranks call this after each step and get the same answer."""
        own = self._signalled or ("out of time" if self._clock() > self._until else None)
        code = int(self._ranks.max_(torch.tensor(0 if own is None else _REASONS.index(own) + 1)))
        return _REASONS[code - 1] if code else None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signalled == "interrupted":
            os.write(2, b"\nvl2: stopped immediately; --resume continues from the last checkpoint\n")
            os._exit(130)  # this is safe, because a partly written checkpoint does not have its final name yet
        self._signalled = "interrupted" if number == signal.SIGINT else "terminated"
        os.write(2, b"\nvl2: stopping after this step, with a checkpoint\n")


LAST_WRITE_S = 10.0  # time to finish a checkpoint after a rank is lost; torchrun kills the processes after 30 s


def rank_lost(error: BaseException, ranks: Ranks, folder: Path, checkpoints: Checkpoints | None) -> RankLost | None:
    """Return a RankLost if an error was caused by the loss of another rank, otherwise None.

    Also stop waiting for the lost rank's part of a checkpoint. `folder` is the run folder.
    """
    why = why_lost(error)
    if why is None:
        return None
    if checkpoints is not None:
        checkpoints.give_up(LAST_WRITE_S)
    newest = newest_checkpoint(folder)
    how = "there is no checkpoint yet, so start again from the beginning"
    if newest is not None:
        how = f"the last checkpoint is {newest}: continue with --resume, on any number of ranks"
    return RankLost(f"rank {ranks.rank} of {ranks.size}: {why}; {how}")
