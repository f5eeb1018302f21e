"""What ends a run before its last step: SIGINT, SIGTERM or its time limit, agreed on by all ranks; or a lost rank.

The first signal lets the step in hand end and a checkpoint follow. A second SIGINT ends the process at once.
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
_REASONS: tuple[Ended, ...] = ("out of time", "terminated", "interrupted")  # the later one counts where ranks differ
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Notes signals instead of dying of them, from entering to leaving it, and watches the clock."""

    def __init__(self, minutes: float | None, ranks: Ranks, clock: Callable[[], float] = time.monotonic) -> None:
        self._ranks, self._clock = ranks, clock
        self._until = clock() + minutes * 60 if minutes is not None else float("inf")
        self._signalled: Ended | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # only it may ask for signals
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def why(self) -> Ended | None:
        """Return why the run must stop now. All ranks call it after each step, and all get the same answer."""
        own = self._signalled or ("out of time" if self._clock() > self._until else None)
        code = int(self._ranks.max_(torch.tensor(0 if own is None else _REASONS.index(own) + 1)))
        return _REASONS[code - 1] if code else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signalled == "interrupted":
            os.write(2, b"\nvl2: stopped at once; --resume goes on from the last checkpoint\n")
            os._exit(130)  # a checkpoint that is half-written has no name yet, so nothing can be left broken
        self._signalled = "interrupted" if number == signal.SIGINT else "terminated"
        os.write(2, b"\nvl2: stopping after this step, with a checkpoint\n")


# What a rank does and says when another one is lost: it has died, or hangs.

LAST_WRITE_S = 10.0  # for a checkpoint that is being written then; torchrun kills after 30


def rank_lost(error: BaseException, ranks: Ranks, folder: Path, checkpoints: Checkpoints | None) -> RankLost | None:
    """Return what to raise for an error that came of another rank's loss, None for any other error.

    What waits for the lost rank is given up. `folder` is the run's, `checkpoints` those that it writes.
    """
    why = why_lost(error)
    if why is None:
        return None
    if checkpoints is not None:
        checkpoints.give_up(LAST_WRITE_S)
    newest = newest_checkpoint(folder)
    how = "there is no checkpoint yet, so start again from the beginning"
    if newest is not None:
        how = f"the last checkpoint is {newest}: go on with --resume, on as many ranks or on others"
    return RankLost(f"rank {ranks.rank} of {ranks.size}: {why}; {how}")
