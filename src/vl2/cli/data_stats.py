"""`vl2 data stats`: what a set of records holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vl2.cli.data_flags import Locations, OptionalFolder, check_locations, load_processor
from vl2.cli.flags import CheckpointFlags, OutputFlags, print_json
from vl2.progress import counted

if TYPE_CHECKING:
    from vl2.curate.stats import Stats


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
    """Print one table: all, then each group."""
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
        table.add_row(Text(name), *numbers, share, style=style)  # Text: a name is no markup

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
