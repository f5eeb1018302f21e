"""The files that a job leaves in its folder, and the progress that it shows.

kept.jsonl       the records made, in the order of the input, the bytes of their images in them
outcomes.jsonl   {"id", "source", "kept", "why"} for every record, in the order of the input
summary.json     counts, and whether the input was read to its end
answers.jsonl    the ledger: every answer of the endpoint (`asker.py`)
ocr.jsonl        the ledger of text read off images

The first three are derived from the ledgers, and are of one job: another one needs a folder of its own. They are
written as *.part and renamed when the run ends.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from vl2.data.record import Record
from vl2.data.store.entry import json_line
from vl2.errors import UserError
from vl2.progress import ProgressDisplay


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a record: the one made of it, or none; and why, or what to note."""

    source: Record
    made: Record | None
    why: str = ""


@dataclass(kw_only=True)
class Summary:
    job: str
    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason, numbers taken out
    asked: int = 0  # answers that the endpoint gave in this run
    reused: int = 0  # answers that the ledger held
    finished: bool = False

    def to_json(self) -> dict[str, Any]:
        # Not dataclasses.asdict: before Python 3.12 it mistakes the counter's items for its elements.
        return {**vars(self), "dropped": dict(self.dropped.most_common())}


class Outputs:
    """The files of one run."""

    def __init__(self, folder: Path, summary: Summary) -> None:
        """Begin the files. UserError if the folder holds the results of another job."""
        folder.mkdir(parents=True, exist_ok=True)
        _check_job(folder, summary.job)
        self._folder = folder
        self.summary = summary
        self._kept: TextIO = (folder / "kept.jsonl.part").open("w", encoding="utf-8")
        self._outcomes: TextIO = (folder / "outcomes.jsonl.part").open("w", encoding="utf-8")

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()
        self._outcomes.close()

    def write(self, outcome: Outcome) -> None:
        """Append what became of a record."""
        record, kept = outcome.source, outcome.made is not None
        line = {"id": record.id, "source": record.source, "kept": kept, "why": outcome.why}
        _write_line(self._outcomes, line)
        self.summary.seen += 1
        if outcome.made is None:
            self.summary.dropped[reason_kind(outcome.why)] += 1
        else:
            self.summary.kept += 1
            _write_line(self._kept, outcome.made.to_dict())

    def publish(self) -> None:
        """Give the files their names, whole."""
        for file, name in ((self._kept, "kept.jsonl"), (self._outcomes, "outcomes.jsonl")):
            file.flush()
            os.fsync(file.fileno())
            os.replace(self._folder / f"{name}.part", self._folder / name)
        part = self._folder / "summary.json.part"
        part.write_text(json.dumps(self.summary.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        os.replace(part, self._folder / "summary.json")


def _check_job(folder: Path, job: str) -> None:
    """Refuse to put the results of one job in the place of another's, which its records may be made of."""
    path = folder / "summary.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))["job"] if path.exists() else job
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path} cannot be read: choose another folder, or delete it") from None
    if earlier != job:
        raise UserError(f"{folder} holds the results of the job {earlier}, not of {job}: choose another folder")


def reason_kind(why: str) -> str:
    """Return the part of a reason that recurs: what stands before its first colon, with numbers as #."""
    return re.sub(r"\d+(\.\d+)?", "#", why.split(":")[0])


def _write_line(file: TextIO, values: object) -> None:
    file.write(json_line(values))


Report = Callable[[Summary], None]


@contextmanager
def shown_progress(name: str, total: int | None, is_shown: bool) -> Iterator[Report]:
    """Yield a function that shows how far a run is. On a pipe nothing is drawn."""
    with ProgressDisplay(total, quiet=not is_shown) as display:

        def report(summary: Summary) -> None:
            display.done = summary.seen
            display.show(f"{name}: {summary.kept} kept, {summary.seen - summary.kept} dropped")

        yield report
