"""How far a batch job is, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.progress import ProgressDisplay

if TYPE_CHECKING:
    from vl2.batch_job.run import BatchProgress, Report


@contextmanager
def batch_progress(*, quiet: bool) -> Iterator[Report]:
    """Yield a function that shows how far a job is."""
    with ProgressDisplay(None, quiet=quiet) as display:

        def report(progress: BatchProgress) -> None:
            display.total, display.done_before = progress.total, progress.done_before
            display.done = progress.done_before + progress.done
            failed = f"{progress.failed} with an error" if progress.failed else ""
            parts = [f"{display.done} of {progress.total}", failed, display.time_left()]
            line = f"vl2: {', '.join(part for part in parts if part)}"
            display.show(f"answering{', ' * bool(failed)}{failed}", line=line)

        yield report


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
