"""`vl2 data build`: draw records of a synthetic source."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from vl2.cli.data_flags import Number
from vl2.cli.flags import OptionalInt, OutputFlags, print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.data.construct.source import Source, Tally


@dataclass(frozen=True, kw_only=True)
class DataBuild:
    """Draw training records: receipts, tables, charts, scenes and more. The same seed draws the same records.

    Without arguments it lists the sources and their settings.

    Examples:
      vl2 data build receipt receipts.parquet --count 1000
      vl2 data build text_image ocr.tar --count 50000 --shard-records 5000 --set texts_zh=passages.txt
      vl2 data build scene scenes.jsonl --count 200 --seed 7 --set tasks=locate,count
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = ""
    """what to draw"""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = ""
    """where to write; .parquet, .tar or .jsonl"""
    count: Number = 100
    """how many records to draw"""
    seed: Number = 0
    processes: OptionalInt = None
    """all cores by default; their number changes nothing but the time"""
    settings: Annotated[
        tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE"), tyro.conf.UseAppendAction
    ] = ()
    """a setting of the source; several values with commas between"""
    shard_records: OptionalInt = None
    """so many records to a file, with numbers in the names"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.data.construct.catalog import SOURCES, find_source
        from vl2.data.construct.source import Tally, generate
        from vl2.data.store import write_records
        from vl2.data.store.write import check_writable

        if not self.source:
            for name, kind in SOURCES.items():
                print(f"{name:14} {kind.category:22} {', '.join(settings_of(kind))}")
            return
        if not self.out:
            raise UserError("say where to write the records: OUT, ending in .parquet, .tar or .jsonl")
        kind = find_source(self.source)
        source = kind(**read_settings(kind, self.settings))
        check_writable(self.out, shard_records=self.shard_records)
        tally = Tally()
        records = generate(
            source,
            self.count,
            self.seed,
            self.processes or os.cpu_count() or 1,
            tally=tally,
            progress=sys.stderr.isatty() and not self.output.quiet,
        )
        files = write_records(records, self.out, shard_records=self.shard_records)
        self._report(files, tally)

    def _report(self, files: list[str], tally: Tally) -> None:
        if self.output.json:
            print_json({"files": files, "made": tally.made, "dropped": tally.dropped})
        elif not self.output.quiet:
            dropped = "".join(f"; {count} dropped: {why}" for why, count in sorted(tally.dropped.items()))
            print(f"vl2: {tally.made} records in {', '.join(files)}{dropped}", file=sys.stderr)


def settings_of(kind: type[Source]) -> list[str]:
    """Return the names of a source's settings."""
    return [f.name for f in dataclasses.fields(kind)]


def read_settings(kind: type[Source], given: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE settings as the types that the source declares. UserError names the nearest setting."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, got {setting!r}")
        if name not in settings_of(kind):
            near = difflib.get_close_matches(name, settings_of(kind), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(settings_of(kind))}"
            raise UserError(f"{kind.name} has no setting {name}: {hint}")
        values[name] = _read_value(name, value, hints[name])
    return values


def _read_value(name: str, value: str, wanted: Any) -> Any:
    if "tuple" in str(wanted):
        return tuple(part for part in value.split(",") if part)
    for kind in (int, float):
        if wanted is kind or wanted == kind | None:
            try:
                return kind(value)
            except ValueError:
                raise UserError(f"{name} must be a number, got {value!r}") from None
    return value
