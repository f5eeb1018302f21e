"""The flags that several `vl2 eval` commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.flags import OptionalText

if TYPE_CHECKING:
    from vl2.eval.task import DataSource

Folder = Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class DataSourceFlags:
    """Where the data lie."""

    data: Folder = None
    """the benchmark's folder, or one that holds several of them by name; `hub` downloads the public copy"""
    split: OptionalText = None
    """another part than the one that is usually reported, as the files name it"""
    fonts: Folder = None
    """fonts for drawn texts; those of the system by default"""

    def data_source(self) -> DataSource:
        from vl2.eval.task import DataSource

        return DataSource(
            data=None if self.data is None else Path(self.data),
            split=self.split,
            fonts=None if self.fonts is None else Path(self.fonts),
        )
