"""A progress line for a job, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vl2.curate.jobs.outputs import Summary

Report = Callable[[Summary], None]


@contextmanager
def shown_progress(name: str, total: int | None, is_shown: bool) -> Iterator[Report]:
    """Yield a function that shows how far a run is. On a pipe nothing is drawn."""
    if not is_shown:
        yield lambda summary: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)

        def report(summary: Summary) -> None:
            dropped = summary.seen - summary.kept
            bar.update(task, completed=summary.seen, description=f"{name}: {summary.kept} kept, {dropped} dropped")

        yield report
