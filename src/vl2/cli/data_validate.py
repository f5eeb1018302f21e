"""`vl2 data validate`: which records cannot be trained on, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.cli.data_flags import Locations, Number, check_locations, load_processor, show_progress, write_text
from vl2.cli.flags import CheckpointFlags, OptionalFile, OptionalInt, OutputFlags, print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.data.record import Record
    from vl2.data.validate import Checked, Summary


@dataclass(frozen=True, kw_only=True)
class DataValidate:
    """Check records: one line for each bad one, with where it is and why. The rest goes on.

    Exit code 1 if any record is bad. A warning (too long) does not make a record bad.

    Examples:
      vl2 data validate train.jsonl
      vl2 data validate shards/ "s3://bucket/set-*.parquet" --max-tokens 2048
      vl2 data validate raw/ --good clean.tar --shard-records 1000 --bad bad.jsonl
    """

    locations: Locations = ()
    """files, folders, globs or URLs; .parquet, .tar and .jsonl"""
    max_tokens: Number = 4096
    """warn of records of more tokens than this sequence length"""
    fast: bool = False
    """do not encode the records with the model's processor"""
    good: OptionalFile = None
    """write the good records here; the ending says the format"""
    shard_records: OptionalInt = None
    """for --good: so many records to a file, with numbers in the names"""
    bad: OptionalFile = None
    """write the problems here as JSONL"""
    model: CheckpointFlags = field(default_factory=CheckpointFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.data.store import read_records, write_records
        from vl2.data.store.access import check_writable
        from vl2.data.validate import Summary, validate

        check_locations(self.locations)
        if self.good is not None:
            check_writable(self.good, shard_records=self.shard_records)
        elif self.shard_records is not None:
            raise UserError("--shard-records is for --good")
        if self.bad is not None and Path(self.bad).exists():
            raise UserError(f"--bad: {self.bad} is there already")
        processor = None if self.fast else load_processor(self.model, quiet=self.output.quiet)
        found = show_progress(read_records(*self.locations), quiet=self.output.quiet)
        checks = validate(found, processor=processor, max_tokens=self.max_tokens)
        summary, problems = Summary(), list[dict[str, object]]()
        good = self._report(checks, summary, problems)
        if self.good is not None:
            write_records(good, self.good, shard_records=self.shard_records)
        else:
            for _ in good:
                pass
        self._finish(summary, problems)

    def _report(
        self, checks: Iterator[Checked], summary: Summary, problems: list[dict[str, object]]
    ) -> Iterator[Record]:
        """Pass the good records on; print, keep and count what is wrong with the others."""
        for checked in checks:
            summary.add(checked)
            for problem in checked.problems:
                if self.output.json or self.bad is not None:
                    problems.append({**problem.to_dict(), "is_warning": problem.is_warning})
                if not self.output.json:
                    print(problem)
            if checked.good is not None:
                yield checked.good

    def _finish(self, summary: Summary, problems: list[dict[str, object]]) -> None:
        if self.bad is not None:
            lines = "".join(f"{json.dumps(problem)}\n" for problem in problems)
            write_text(self.bad, lines)
        if self.output.json:
            print_json({**summary.to_dict(), "problems": problems})
        elif not self.output.quiet:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.by_kind.items()))
            print(f"vl2: {summary.good} good, {summary.bad} bad{f': {kinds}' if kinds else ''}", file=sys.stderr)
        if summary.bad:
            sys.stdout.flush()
            raise SystemExit(1)
