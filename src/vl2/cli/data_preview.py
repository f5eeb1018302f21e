"""`vl2 data preview`: some records as a person should see them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vl2.cli.data_flags import Locations, Number, check_locations, load_processor, write_text
from vl2.cli.flags import CheckpointFlags, OutputFlags, print_json
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataPreview:
    """Draw some records with their boxes and tokens: as one HTML page, or as a contact sheet.

    Examples:
      vl2 data preview train.jsonl
      vl2 data preview shards/ --count 40 --seed 1 --out look.html
      vl2 data preview "s3://bucket/set-*.tar" --out sheet.png
    """

    locations: Locations = ()
    """files, folders, globs or URLs; .parquet, .tar and .jsonl"""
    count: Number = 12
    """how many records"""
    seed: Number = 0
    """which ones"""
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
        from vl2.curate.preview import choose
        from vl2.data.store import open_random

        processor = load_processor(self.model, quiet=self.output.quiet)
        items = choose(open_random(*self.locations), processor, count=self.count, seed=self.seed)
        if is_page:
            from vl2.curate.preview_page import page

            write_text(self.out, page(" ".join(self.locations), items))
        else:
            from vl2.cli.answer import save_drawing
            from vl2.curate.contact_sheet import contact_sheet

            save_drawing(contact_sheet(items), self.out, quiet=True)
        if self.output.json:
            print_json({"out": self.out, "shown": len(items)})
        elif not self.output.quiet:
            print(f"vl2: {len(items)} records in {self.out}", file=sys.stderr)
