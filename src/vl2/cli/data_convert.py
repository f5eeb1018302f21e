"""`vl2 data convert`: read a public data set in its own layout."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.data_flags import Number, show_progress
from vl2.cli.flags import OptionalInt, OptionalText, OutputFlags
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.data.record import Record
    from vl2.datasets import RowProblem


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
        from vl2.datasets import CATALOGUE, convert
        from vl2.synth.table_image import draw_cells

        if not self.name:
            for name, entry in CATALOGUE.items():
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
        good = self._good(show_progress(found, quiet=self.output.quiet), counts)
        files = write_records(good, self.out, shard_records=self.shard_records)
        if not self.output.quiet:
            print(f"vl2: {counts['records']:,} records in {', '.join(files)}", file=sys.stderr)

    def _good(self, found: Iterator[Record | RowProblem], counts: Counter[str]) -> Iterator[Record]:
        """Yield the records with their images, count them, and print what is wrong. UserError if there is none."""
        from vl2.data.record import Record
        from vl2.data.store.files import data_file
        from vl2.data.store.parse import load_images

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
