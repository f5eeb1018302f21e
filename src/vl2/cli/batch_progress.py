"""How far a job is, on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vl2.batch_job.run import BatchProgress, Report

LINE_EVERY_S = 30.0


@contextmanager
def batch_progress(*, quiet: bool) -> Iterator[Report]:
    """Yield a function that shows how far a job is."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def summary(progress: BatchProgress, out: Path) -> str:
    """Return the last line of a run."""
    parts = [f"{progress.done_before + progress.done} of {progress.total} done"]
    if progress.done_before:
        parts.append(f"{progress.done_before} by earlier runs")
    if progress.failed:
        parts.append(f"{progress.failed} with an error")
    if progress.repeating:
        parts.append(f"{progress.repeating} ended because they repeated themselves")
    return f"{', '.join(parts)}: {out}"


def time_left(progress: BatchProgress, elapsed_s: float) -> str:
    """Return the expected time left, by this run's pace; "" before there is one."""
    if not progress.done or elapsed_s <= 0:
        return ""
    minutes, seconds = divmod(round(elapsed_s / progress.done * progress.num_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min left" if hours else f"{minutes} min {seconds} s left"


def _lines() -> Report:
    began = time.monotonic()
    last = began

    def report(progress: BatchProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S:
            return
        last = now
        done = progress.done_before + progress.done
        parts = [f"{done} of {progress.total}", f"{progress.failed} with an error" if progress.failed else ""]
        parts.append(time_left(progress, now - began))
        print(f"vl2: {', '.join(part for part in parts if part)}", file=sys.stderr, flush=True)

    return report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[left]}"))  # fmt: skip
    began = time.monotonic()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answering", total=None, left="")

        def report(progress: BatchProgress) -> None:
            failed = f", {progress.failed} with an error" if progress.failed else ""
            bar.update(
                task,
                total=progress.total,
                completed=progress.done_before + progress.done,
                description=f"answering{failed}",
                left=time_left(progress, time.monotonic() - began),
            )

        yield report
