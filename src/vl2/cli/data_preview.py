"""The command `vl2 data preview`, which shows records, and measures how varied those of each source are."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.flags import (
    CheckpointFlags,
    Locations,
    Number,
    OptionalInt,
    OutputFlags,
    check_locations,
    load_processor,
    print_json,
    write_text,
)
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.curate.diversity import Diversity
    from vl2.curate.preview import PreviewItem
    from vl2.data.pack_fill import PackFill
    from vl2.data.record import Record
    from vl2.data.store import Problem, Records


@dataclass(frozen=True, kw_only=True)
class DataPreview:
    """Draw some records with their boxes and tokens: as one HTML page, or as a contact sheet.

    It also measures over a sample how varied each source is: the share of different answers, for how many records they
    are enough (each then occurs four times), the words, the phrases of four words that occur again, the layouts, and
    how much the pictures differ (0 is not at all, 0.5 is unrelated). It warns of sources that repeat themselves.

    A location may also be a source of `vl2 data build`, or a recipe: then a sample of it is drawn, and nothing is kept.

    Examples:
      vl2 data preview train.jsonl
      vl2 data preview shards/ --count 40 --seed 1 --out look.html
      vl2 data preview "s3://bucket/set-*.tar" --out sheet.png
      vl2 data preview form --set photographed=1 --out forms.jpg
      vl2 data preview recipes/data/pretraining.toml --out sources.html
    """

    locations: Locations = ()
    """files, folders, globs or URLs of .parquet, .tar and .jsonl; or what to draw"""
    count: Number = 12
    """how many records of a location, or of each source of a recipe"""
    seed: Number = 0
    """which ones"""
    sample: Number = 200
    """how many records to measure, of a recipe for each source"""
    settings: Annotated[
        tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE"), tyro.conf.UseAppendAction
    ] = ()
    """a setting of the source that is drawn"""
    processes: OptionalInt = None
    """of drawing; all cores by default"""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = "preview.html"
    """a page (.html), or a contact sheet (.png, .jpg, ...)"""
    model: CheckpointFlags = field(default_factory=CheckpointFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        check_locations(self.locations)
        is_page = self.out.lower().endswith((".html", ".htm"))
        if not is_page:
            from vl2.cli.answer import DRAWN_AS

            if not self.out.lower().endswith(DRAWN_AS):
                raise UserError(f"--out must end in .html or {', '.join(DRAWN_AS)}, got {self.out}")
        if self.sample < 0:
            raise UserError(f"--sample must be at least 0, got {self.sample}")
        from vl2.curate.preview import choose, pack_fill

        processor = load_processor(self.model, quiet=self.output.quiet)
        items: list[PreviewItem | Problem] = []
        measured: list[Diversity] = []
        with self._open() as (stores, planned):
            for store in stores:
                items += choose(store, processor, count=self.count, seed=self.seed)
                measured += self._measure(store, planned)
        if is_page:
            from vl2.curate.preview import page

            write_text(self.out, page(" ".join(self.locations), items, measured))
        else:
            from vl2.cli.answer import save_drawing
            from vl2.curate.contact_sheet import contact_sheet

            save_drawing(contact_sheet(items), self.out, quiet=True)
        self._report(len(items), measured, pack_fill(items))

    @contextmanager
    def _open(self) -> Iterator[tuple[list[Records], dict[str, int] | None]]:
        """Open the locations, or a sample that is drawn into a folder which is deleted afterwards.

        Also return how many records of each source there will be; None if the store itself is what there is.
        """
        from vl2.data.store import open_random

        drawn = [place for place in self.locations if not Path(place).exists() and _is_source(place)]
        recipes = [place for place in self.locations if place.endswith(".toml")]
        if not drawn and not recipes:
            if self.settings:
                raise UserError("--set is for a source that is drawn")
            yield [open_random(*self.locations)], None
            return
        if len(self.locations) > 1:
            raise UserError("give one source or one recipe to draw, or locations of records")
        with tempfile.TemporaryDirectory(prefix="vl2-preview-") as folder:
            yield self._draw(self.locations[0], Path(folder))

    def _draw(self, place: str, folder: Path) -> tuple[list[Records], dict[str, int]]:
        from vl2.curate.drawn_sample import sample_recipe, sample_source
        from vl2.curate.stage_recipe import read_recipe
        from vl2.data.setting_values import split_setting
        from vl2.data.store import open_random, write_records

        count, processes = max(self.count, self.sample), self.processes or os.cpu_count() or 1
        if place.endswith(".toml"):
            if self.settings:
                raise UserError("a recipe holds the settings of its sources: --set is for a single source")
            samples = sample_recipe(read_recipe(place), count, processes)
        else:
            settings = dict(map(split_setting, self.settings))
            samples = iter([sample_source(place, settings, count, self.seed, processes)])
        stores: list[Records] = []
        planned: dict[str, int] = {}
        for number, sample in enumerate(samples):
            if sample.records:
                stores.append(open_random(*write_records(sample.records, str(folder / f"{number}.tar"))))
            if sample.planned is not None:
                planned[sample.name] = sample.planned
        if not stores:
            raise UserError(f"{place}: nothing was drawn")
        return stores, planned

    def _measure(self, store: Records, planned: dict[str, int] | None) -> list[Diversity]:
        """Measure a sample of a store. Without `planned`, a source has its share of the store's records."""
        from vl2.curate.diversity import diversity_by_source

        count = min(self.sample, len(store))
        chosen = sorted(random.Random(self.seed).sample(range(len(store)), count))
        measured = diversity_by_source(_readable(store, chosen), planned)
        if planned is None:
            measured = [replace(each, planned=round(len(store) * each.records / count)) for each in measured]
        return measured

    def _report(self, shown: int, measured: Sequence[Diversity], fill: PackFill | None) -> None:
        if self.output.json:
            diversity = [each.to_dict() for each in measured]
            full = None if fill is None else fill.fill
            print_json({"out": self.out, "shown": shown, "diversity": diversity, "pack_fill": full})
            return
        if self.output.quiet:
            return
        print(f"vl2: {shown} records in {self.out}", file=sys.stderr)
        if fill is not None:
            size = f"{fill.packing.seq_len:,} tokens and at most {fill.packing.max_tiles} tiles"
            print(f"vl2: packs of {size} would be {fill.fill:.0%} full of records like these", file=sys.stderr)
            if fill.warning is not None:
                print(f"vl2: {fill.warning}", file=sys.stderr)
        _print_diversity(measured)
        for each in measured:
            for warning in each.warnings():
                print(f"vl2: warning: {warning}", file=sys.stderr)


def _is_source(name: str) -> bool:
    from vl2.synth.catalog import SOURCES

    return name in SOURCES or (":" in name and "/" not in name)


def _readable(store: Records, chosen: Sequence[int]) -> Iterator[Record]:
    from vl2.data.store import Problem

    for index in chosen:
        found = store.find(index)
        if not isinstance(found, Problem):
            yield found.record


def _print_diversity(measured: Sequence[Diversity]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vl2.curate.diversity import COLUMNS, as_rows

    if not measured:
        return
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left")
    for row in as_rows(measured):
        table.add_row(*map(Text, row))  # Text, so that a name is not parsed as markup
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
