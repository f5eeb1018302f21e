"""How a run shows itself: a bar with the time left on a terminal, plain lines elsewhere, nothing where it is quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from vl2.train.metrics import StepMetrics

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class TrainProgress:
    """Shows the steps of a run on stderr. Enter it before the first step."""

    def __init__(
        self, num_steps: int, first_step: int, *, log_every: int = 1, quiet: bool = False, file: TextIO | None = None
    ) -> None:
        self._num_steps = num_steps
        self._first_step = first_step  # steps done before
        self._log_every = log_every
        self._is_quiet = quiet
        self._file = file or sys.stderr
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()

    def __enter__(self) -> TrainProgress:
        self._started = time.monotonic()
        if not self._is_quiet and self._file.isatty():
            self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, metrics: StepMetrics) -> None:
        """Show a step that is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=metrics.step, status=describe(metrics))
        elif not self._is_quiet and (metrics.step % self._log_every == 0 or metrics.step == self._num_steps):
            left = self._left(metrics.step)
            self.say(f"step {metrics.step:,}/{self._num_steps:,}  {describe(metrics)}  {left} left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._is_quiet:
            return
        if self._bar is not None:
            self._bar.console.print(f"vl2: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"vl2: {text}", file=self._file, flush=True)

    def _left(self, step: int) -> str:
        done = step - self._first_step
        return format_time((time.monotonic() - self._started) / max(done, 1) * (self._num_steps - step))

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._bar = Bar(*columns, console=Console(file=self._file), redirect_stdout=False)
        self._task = self._bar.add_task("steps", total=self._num_steps, completed=self._first_step, status="")
        self._bar.start()


def describe(metrics: StepMetrics) -> str:
    """Return the figures of a step that one watches."""
    parts = [
        f"loss {metrics.loss:.4f}",
        f"rate {metrics.learning_rate:.2e}",
        f"norm {metrics.grad_norm:.2f}",
        f"{metrics.tokens_per_s:,.0f} tokens/s",
    ]
    if metrics.mfu is not None:
        parts.append(f"MFU {metrics.mfu:.0%}")
    if metrics.discarded:
        parts.append(f"discarded: {metrics.discarded}")
    return "  ".join(parts)


def format_time(seconds: float) -> str:
    """Return a duration as days, hours, minutes and seconds, the two largest that matter."""
    total = round(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {total % 60:02} s" if minutes else f"{total} s"
