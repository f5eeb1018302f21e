"""How far a job is, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vl2.curate.jobs.outputs import Summary
from vl2.progress import ProgressDisplay

Report = Callable[[Summary], None]


@contextmanager
def shown_progress(name: str, total: int | None, is_shown: bool) -> Iterator[Report]:
    """Yield a function that shows how far a run is. On a pipe nothing is drawn."""
    with ProgressDisplay(total, quiet=not is_shown) as display:

        def report(summary: Summary) -> None:
            display.done = summary.seen
            display.show(f"{name}: {summary.kept} kept, {summary.seen - summary.kept} dropped")

        yield report
