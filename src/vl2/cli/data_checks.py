"""The commands `vl2 data validate` and `stats`, which check and count records before training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.cli.flags import (
    CheckpointFlags,
    Locations,
    Number,
    OptionalFile,
    OptionalFolder,
    OptionalInt,
    OutputFlags,
    check_locations,
    load_processor,
    print_json,
    write_text,
)
from vl2.errors import UserError
from vl2.progress import counted

if TYPE_CHECKING:
    from vl2.curate.stats import Stats
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
            raise UserError(f"--bad: {self.bad} already exists")
        processor = None if self.fast else load_processor(self.model, quiet=self.output.quiet)
        found = counted(read_records(*self.locations), quiet=self.output.quiet)
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
        """Yield the good records. Print, collect and count the problems of the others."""
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


@dataclass(frozen=True, kw_only=True)
class DataStats:
    """Count records, tokens and tiles, by category, language and source.

    Examples:
      vl2 data stats shards/
      vl2 data stats "train-*.parquet" --model small --plots plots/
      vl2 data stats train.jsonl --json
    """

    locations: Locations = ()
    """files, folders, globs or URLs; .parquet, .tar and .jsonl"""
    plots: OptionalFolder = None
    """write bar charts and histograms into this folder"""
    model: CheckpointFlags = field(default_factory=CheckpointFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.curate.stats import gather
        from vl2.data.store import read_records

        check_locations(self.locations)
        found = counted(read_records(*self.locations), quiet=self.output.quiet)
        stats = gather(found, load_processor(self.model, quiet=self.output.quiet))
        if self.output.json:
            print_json(stats.to_dict())
        else:
            print_stats(stats)
        if self.plots is not None:
            from vl2.curate.stats import save_plots

            paths = save_plots(stats, self.plots)
            if not self.output.quiet:
                print(f"vl2: {len(paths)} plots in {self.plots}", file=sys.stderr)
        if stats.skipped and not self.output.quiet:
            why = "`vl2 data validate` says why"
            print(f"vl2: {stats.skipped} left out that cannot be read or encoded; {why}", file=sys.stderr)


def print_stats(stats: Stats) -> None:
    """Print a table with the totals and the counts of each group."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vl2.curate.stats import Tally, largest_first

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("records", "images", "tiles", "text", "trained", "visual", "tokens", "share"):
        table.add_column(name, justify="right")

    def add(name: str, tally: Tally, style: str = "") -> None:
        values = (tally.records, tally.images, tally.tiles, tally.text_tokens, tally.trained_tokens)
        numbers = [f"{value:,}" for value in (*values, tally.visual_tokens, tally.tokens)]
        share = f"{tally.tokens / max(1, stats.total.tokens):.1%}"
        table.add_row(Text(name), *numbers, share, style=style)  # Text, so that a name is not parsed as markup

    add("all", stats.total, "bold")
    for title, groups in stats.groups().items():
        table.add_section()
        table.add_row()
        table.add_row(Text(title.replace("_", " "), style="italic"))
        for name, tally in largest_first(groups):
            add(f"  {name}", tally)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    for title, counts in (("tiles per image", stats.tiles_per_image), ("tokens up to", stats.lengths)):
        line = ", ".join(f"{value}: {number:,}" for value, number in sorted(counts.items()))
        console.print(Text(f"\n{title}: {line or 'none'}"), end="")
    console.print()
