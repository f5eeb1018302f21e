"""How a training command ends: what it prints of the run, and its exit code."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.cli.flags import print_json

if TYPE_CHECKING:
    from vl2.train.run import Outcome

EXIT_CODES = {"finished": 0, "out of time": 0, "interrupted": 128 + signal.SIGINT, "terminated": 128 + signal.SIGTERM}


def print_outcome(outcome: Outcome) -> None:
    """Print a run's outcome as JSON."""
    values = dataclasses.asdict(outcome)
    print_json({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})


def exit_as(outcome: Outcome) -> None:
    """End the process with the code of a run that a signal has stopped; return after any other."""
    if EXIT_CODES[outcome.ended]:
        sys.exit(EXIT_CODES[outcome.ended])
