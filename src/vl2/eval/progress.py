"""How far a run is: one line that stays on a terminal, else a line every half minute. To stderr, never to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

EVERY_S = 30.0


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return f"{round(whole / 60)} min" if whole < 5400 else f"{whole / 3600:.1f} h"


class EvalProgress:
    """Counts items; the time left is estimated from the items of this call, not from those done before it."""

    def __init__(
        self, name: str, *, total: int, done_before: int, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._total, self._before = name, total, done_before
        self._quiet, self._clock = quiet, clock
        self._start = self._last = clock()
        self._done, self._points = done_before, 0.0
        self._is_live = sys.stderr.isatty()

    def step(self, scores: list[float]) -> None:
        self._done += len(scores)
        self._points += sum(scores)
        now = self._clock()
        if self._quiet or not (self._is_live or now - self._last >= EVERY_S or self._done == self._total):
            return
        self._last = now
        end = "\n" if not self._is_live or self._done == self._total else ""
        print(
            f"{chr(13) + chr(27) + '[K' if self._is_live else ''}{self.line(now)}", end=end, file=sys.stderr, flush=True
        )

    def line(self, now: float) -> str:
        """Return what is shown: how many are done, their mean score, the time left."""
        here = self._done - self._before
        left = (now - self._start) / here * (self._total - self._done) if here else 0.0
        mean = f", score {100 * self._points / here:.1f}" if here else ""
        rest = f", {duration(left)} left" if self._done < self._total else f", {duration(now - self._start)}"
        return f"{self._name}: {self._done} of {self._total}{mean}{rest}"
