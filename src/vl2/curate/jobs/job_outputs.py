"""Write the output files of a job, and show its progress.

kept.jsonl       the resulting records with the bytes of their images, in input order
outcomes.jsonl   {"id", "source", "kept", "why"} for every record, in input order
summary.json     counts, and whether the whole input was processed
answers.jsonl    the ledger of all answers of the endpoint (`asker.py`)
ocr.jsonl        the ledger of OCR results

The first three files can be rebuilt from the ledgers. A folder belongs to one job; another job needs its own folder.
The files are written as *.part and renamed at the end of the run.
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
    """The outcome of a job for one record: the new record or None, and the reason or a note."""

    source: Record
    made: Record | None
    why: str = ""


@dataclass(kw_only=True)
class Summary:
    """The counts of a job's run."""

    job: str
    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason, with numbers replaced by #
    asked: int = 0  # answers from the endpoint in this run
    reused: int = 0  # answers from the ledger
    finished: bool = False

    def to_json(self) -> dict[str, Any]:
        # Before Python 3.12, dataclasses.asdict() mistakes a Counter's items for its elements.
        return {**vars(self), "dropped": dict(self.dropped.most_common())}


class Outputs:
    """The output files of one run."""

    def __init__(self, folder: Path, summary: Summary) -> None:
        """Open the files for writing. Raise UserError if the folder holds the results of another job."""
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
        """Append the outcome of a record."""
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
        """Rename the finished files to their final names, and write the summary."""
        for file, name in ((self._kept, "kept.jsonl"), (self._outcomes, "outcomes.jsonl")):
            file.flush()
            os.fsync(file.fileno())
            os.replace(self._folder / f"{name}.part", self._folder / name)
        part = self._folder / "summary.json.part"
        part.write_text(json.dumps(self.summary.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        os.replace(part, self._folder / "summary.json")


def _check_job(folder: Path, job: str) -> None:
    """Raise UserError if the folder holds another job's results, which may be the input of this job."""
    path = folder / "summary.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))["job"] if path.exists() else job
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path} cannot be read: choose another folder, or delete it") from None
    if earlier != job:
        raise UserError(f"{folder} holds the results of the job {earlier}, not of {job}: choose another folder")


def reason_kind(why: str) -> str:
    """Return the recurring part of a reason: the text before the first colon, with numbers replaced by #."""
    return re.sub(r"\d+(\.\d+)?", "#", why.split(":")[0])


def _write_line(file: TextIO, values: object) -> None:
    file.write(json_line(values))


Report = Callable[[Summary], None]


@contextmanager
def shown_progress(name: str, total: int | None, is_shown: bool) -> Iterator[Report]:
    """Yield a function that displays the progress of a run."""
    with ProgressDisplay(total, quiet=not is_shown) as display:

        def report(summary: Summary) -> None:
            display.done = summary.seen
            display.show(f"{name}: {summary.kept} kept, {summary.seen - summary.kept} dropped")

        yield report
