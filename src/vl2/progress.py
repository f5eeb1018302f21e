"""Progress displays on stderr: a bar with the time left on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from typing_extensions import Self

T = TypeVar("T")
LINE_EVERY_S = 30.0


class ProgressDisplay:
    """Progress of a run that counts steps. Use it as a context manager; set `done`, then call `show`.

    `total` is None if it is not known. `done_before` steps were done by earlier runs, so the time left is computed
    without them.
    """

    def __init__(
        self,
        total: int | None,
        *,
        done_before: int = 0,
        quiet: bool = False,
        is_kept: bool = False,  # leave the finished bar on the terminal
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.done_before = self.done = done_before
        self._is_quiet, self._is_kept = quiet, is_kept
        self._file = file or sys.stderr
        self._clock = clock
        self._start = self._last_line = clock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._start = self._last_line = self._clock()
        if not self._is_quiet and self._file.isatty():
            self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start

    def time_left(self) -> str:
        """Estimate the time left from this run's pace, like "1 min 05 s left". Return "" if it is not known."""
        done_now = self.done - self.done_before
        if self.total is None or done_now <= 0 or self.elapsed_s <= 0:
            return ""
        return f"{format_time(self.elapsed_s / done_now * (self.total - self.done))} left"

    def show(self, status: str, *, line: str | None = None, line_every_s: float = LINE_EVERY_S) -> None:
        """Update the bar with `status`, or without a bar print `line` if the last line is `line_every_s` ago."""
        if self._bar is not None and self._task is not None:
            left = self.time_left() or format_time(self.elapsed_s)
            self._bar.update(self._task, total=self.total, completed=self.done, description=status, left=left)
        elif line is not None and not self._is_quiet and self._clock() - self._last_line >= line_every_s:
            self._last_line = self._clock()
            print(line, file=self._file, flush=True)

    def say(self, text: str) -> None:
        """Print a line on stderr, above the bar if there is one."""
        if self._is_quiet:
            return
        if self._bar is not None:
            self._bar.console.print(f"vl2: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"vl2: {text}", file=self._file, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        columns = (
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        )
        console = Console(file=self._file)
        # With expand=True a narrow terminal truncates the description, not the bar or the counts.
        self._bar = Bar(*columns, console=console, transient=not self._is_kept, redirect_stdout=False, expand=True)
        self._task = self._bar.add_task("", total=self.total, completed=self.done, left="")
        self._bar.start()


def format_time(seconds: float) -> str:
    """Format a duration in its two largest units, like "2 h 05 min"."""
    total = round(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {total % 60:02} s" if minutes else f"{total} s"


def counted(items: Iterator[T], *, quiet: bool) -> Iterator[T]:
    """Yield the items, and show their count on stderr if it is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} records"), TimeElapsedColumn())
    console = Console(stderr=True, soft_wrap=True)
    # If stdout is this terminal too, its lines go above the counter. A pipe or a file must get them unchanged.
    is_shared = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=is_shared) as bar:
        yield from bar.track(items)


@contextmanager
def bytes_bar(quiet: bool, doing: str = "loading") -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that shows (bytes done, bytes in all) on stderr, or None if stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
