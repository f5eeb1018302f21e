"""The command `vl2 data filter`, which drops records that are not worth training on and records the reasons."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vl2.cli.flags import (
    CheckpointFlags,
    Locations,
    Number,
    OptionalFile,
    OutputFlags,
    check_locations,
    load_processor,
    print_json,
)
from vl2.errors import UserError
from vl2.progress import counted

if TYPE_CHECKING:
    from vl2.curate.filters.filter_folder import FilterResult
    from vl2.process.processor import Processor


@dataclass(frozen=True, kw_only=True)
class DataFilter:
    """Filter records into a folder: OUT/kept has the records, OUT/ledger says of each what became of it, and why.

    Filters run in the order given; the first that says no ends the chain for a record. Run again after a stop, it goes
    on where it was. Without arguments it lists the filters and their settings.

    Examples:
      vl2 data filter raw/ --out clean --filter tiny --filter repetition:max_share=0.3,categories=caption
      vl2 data filter raw/ --out clean --recipe filters.toml --ray
      vl2 data filter raw/ --out short --filter too_long:limit=4096 --model tiny
    """

    locations: Locations = ()
    """files, folders, globs or URLs; .parquet, .tar and .jsonl"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """a new folder, or one of a run that was stopped"""
    filters: Annotated[
        tuple[str, ...], tyro.conf.arg(name="filter", metavar="NAME[:SETTING=VALUE,...]"), tyro.conf.UseAppendAction
    ] = ()
    """a filter, in the order of the chain"""
    recipe: OptionalFile = None
    """a TOML file with the filters as [[filter]] tables, instead"""
    part_records: Number = 2000
    """records of the input to a part; a stopped run loses one part at most"""
    format: Annotated[str, tyro.conf.arg(metavar="FORMAT")] = "parquet"
    """of the kept records: parquet, tar or jsonl"""
    ray: bool = False
    """look at the records on the Ray cluster of RAY_ADDRESS, or one of this machine; the result is the same"""
    model: CheckpointFlags = field(default_factory=CheckpointFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.curate.filters.filter_catalog import FILTERS, filter_settings, make_filters
        from vl2.curate.filters.filter_folder import filter_folder
        from vl2.data.store import read_records
        from vl2.data.store.locations import format_of

        if not self.locations and not self.filters and self.recipe is None:
            for name in FILTERS:
                print(f"{name:16} {', '.join(filter_settings(name))}")
            return
        check_locations(self.locations)
        if not self.out:
            raise UserError("say where the records go: --out FOLDER")
        format_of(f"x.{self.format}")
        wanted = self._wanted()
        chain = make_filters(wanted, self._load)
        found = counted(read_records(*self.locations), quiet=self.output.quiet)
        settings = {"chain": wanted, "model": vars(self.model)}
        done = filter_folder(
            found,
            chain,
            Path(self.out),
            settings,
            part_records=self.part_records,
            ending=self.format,
            on="ray" if self.ray else "local",
        )
        self._report(done)

    def _wanted(self) -> list[dict[str, Any]]:
        from vl2.files import read_toml

        if (self.recipe is not None) == bool(self.filters):
            raise UserError("say which filters: --filter NAME, several times, or --recipe FILE")
        if self.recipe is None:
            return [_parsed(text) for text in self.filters]
        content = read_toml(self.recipe)
        listed = content.pop("filter", None)
        if content or not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise UserError(f"{self.recipe} must hold [[filter]] tables and nothing else")
        return listed

    def _load(self) -> Processor:
        return load_processor(self.model, quiet=self.output.quiet)

    def _report(self, done: FilterResult) -> None:
        if self.output.json:
            print_json({"folder": self.out, **done.to_dict()})
            return
        if self.output.quiet:
            return
        for name, count in done.dropped.most_common():
            print(f"{name:16} {count:>10,} dropped", file=sys.stderr)
        print(f"{'kept':16} {done.kept:>10,} of {done.seen:,}, in {Path(self.out) / 'kept'}", file=sys.stderr)


def _parsed(text: str) -> dict[str, Any]:
    """Parse NAME:SETTING=VALUE,SETTING=VALUE. Several categories are separated by "+"."""
    from vl2.data.setting_values import split_setting

    name, _, rest = text.partition(":")
    values = dict(map(split_setting, rest.split(","))) if rest else {}
    if "categories" in values:
        values["categories"] = values["categories"].replace("+", ",")
    return {"name": name, **values}
