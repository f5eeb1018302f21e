"""How far an evaluation is: the items done, their mean score, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from vl2.progress import LINE_EVERY_S, ProgressDisplay, format_time


class EvalProgress(ProgressDisplay):
    """Counts items; a plain line comes every half minute and at the end."""

    def __init__(
        self, name: str, *, total: int, done_before: int, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(total, done_before=done_before, quiet=quiet, is_kept=True, clock=clock)
        self._name = name
        self._points = 0.0

    def step(self, scores: list[float]) -> None:
        self.done += len(scores)
        self._points += sum(scores)
        line_every_s = 0.0 if self.done == self.total else LINE_EVERY_S
        self.show(f"{self._name}, {self._mean()}", line=self.line(), line_every_s=line_every_s)

    def line(self) -> str:
        """Return what is shown: how many are done, their mean score, the time left; at the end the time taken."""
        rest = format_time(self.elapsed_s) if self.done == self.total else self.time_left()
        return f"{self._name}: {self.done} of {self.total}, {self._mean()}, {rest}"

    def _mean(self) -> str:
        return f"score {100 * self._points / (self.done - self.done_before):.1f}"
