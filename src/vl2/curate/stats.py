"""Statistics of a set of records as data and plots: tokens by category, language and source, tiles and lengths."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl2.data.index import TokenCounts, count_tokens
from vl2.data.record import Record
from vl2.data.store.entry import Found, Problem
from vl2.data.store.locations import needs_extra
from vl2.errors import UserError
from vl2.process.processor import Processor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(kw_only=True)
class Tally:
    """Totals over records."""

    records: int = 0
    images: int = 0
    tiles: int = 0
    text_tokens: int = 0
    trained_tokens: int = 0
    visual_tokens: int = 0

    def add(self, counts: TokenCounts) -> None:
        self.records += 1
        self.images += len(counts.grids)
        self.tiles += counts.tiles
        self.text_tokens += counts.text
        self.trained_tokens += counts.trained
        self.visual_tokens += counts.visual

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.visual_tokens

    def to_dict(self) -> dict[str, int]:
        return {**self.__dict__, "tokens": self.tokens}


Groups = dict[str, Tally]


@dataclass(kw_only=True)
class Stats:
    """All statistics of a set of records."""

    total: Tally = field(default_factory=Tally)
    by_category: Groups = field(default_factory=dict)
    by_language: Groups = field(default_factory=dict)
    by_source: Groups = field(default_factory=dict)
    tiles_per_image: Counter[int] = field(default_factory=Counter)  # number of tiles -> number of images
    lengths: Counter[int] = field(default_factory=Counter)  # tokens, rounded up to a power of two -> records
    skipped: int = 0  # records that could not be read or encoded

    def add(self, record: Record, counts: TokenCounts) -> None:
        self.total.add(counts)
        for groups, name in (
            (self.by_category, record.category),
            (self.by_language, record.language),
            (self.by_source, record.source),
        ):
            groups.setdefault(name, Tally()).add(counts)
        self.tiles_per_image.update(counts.tiles_per_image)
        self.lengths[1 << (counts.total - 1).bit_length()] += 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "total": self.total.to_dict(),
            **{
                name: {key: tally.to_dict() for key, tally in largest_first(groups)}
                for name, groups in self.groups().items()
            },
            "tiles_per_image": {str(tiles): images for tiles, images in sorted(self.tiles_per_image.items())},
            "lengths": {str(bound): records for bound, records in sorted(self.lengths.items())},
            "skipped": self.skipped,
        }

    def groups(self) -> dict[str, Groups]:
        return {"by_category": self.by_category, "by_language": self.by_language, "by_source": self.by_source}


def largest_first(groups: Groups) -> list[tuple[str, Tally]]:
    """Return the groups by decreasing number of tokens; ties are sorted by name."""
    return sorted(groups.items(), key=lambda item: (-item[1].tokens, item[0]))


def gather(found: Iterable[Found], processor: Processor) -> Stats:
    """Count all records. Records that cannot be read or encoded count as skipped; `validate` reports the reasons."""
    stats = Stats()
    for item in found:
        if isinstance(item, Problem):
            stats.skipped += 1
            continue
        try:
            stats.add(item.record, count_tokens(item.record, processor))
        except UserError:
            stats.skipped += 1
    return stats


TEXT_COLOR, VISUAL_COLOR = "#0072B2", "#E69F00"  # Okabe and Ito (2008)
MAX_BARS = 20  # the last bar sums up all further groups


def save_plots(stats: Stats, folder: str) -> list[Path]:
    """Write all plots as PNG files into a folder, which is created. Raise UserError if that fails."""
    with needs_extra("plotting"):
        import matplotlib.figure
    target = Path(folder)
    paths = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, groups in stats.groups().items():
            paths.append(target / f"tokens_{name}.png")
            height = 1.6 + 0.34 * min(len(groups), MAX_BARS)
            figure = matplotlib.figure.Figure(figsize=(8, height), layout="constrained")
            _draw_groups(figure.subplots(), groups, name.replace("_", " "))
            _save(figure, paths[-1])
        for name, counts, label in (
            ("tiles_per_image", stats.tiles_per_image, ("tiles of an image", "images")),
            ("lengths", stats.lengths, ("tokens of a record, at most", "records")),
        ):
            paths.append(target / f"{name}.png")
            figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
            _draw_histogram(figure.subplots(), counts, *label)
            _save(figure, paths[-1])
    except OSError as error:
        raise UserError(f"cannot write plots to {folder}: {error.strerror or error}") from None
    return paths


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, which needs no warning.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=120)


def _draw_groups(axes: Axes, groups: Groups, title: str) -> None:
    rows = [(name, tally.text_tokens, tally.visual_tokens) for name, tally in largest_first(groups)]
    if len(rows) > MAX_BARS:
        others = rows[MAX_BARS - 1 :]
        rows = rows[: MAX_BARS - 1]
        rows.append((f"{len(others)} others", sum(r[1] for r in others), sum(r[2] for r in others)))
    places = range(len(rows))
    text, visual = [row[1] for row in rows], [row[2] for row in rows]
    axes.barh(places, text, color=TEXT_COLOR, label="text")
    axes.barh(places, visual, left=text, color=VISUAL_COLOR, label="visual")
    # Escape "$" in names from the data, because it would start a formula.
    axes.set_yticks(places, [row[0][:40].replace("$", r"\$") for row in rows])
    axes.invert_yaxis()
    axes.set_title(f"Tokens {title}", loc="left")
    _style_axes(axes, "x")
    if rows:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _draw_histogram(axes: Axes, counts: dict[int, int], label: str, counted: str) -> None:
    values = sorted(counts)
    bars = axes.bar([str(value) for value in values], [counts[value] for value in values], color=TEXT_COLOR)
    axes.bar_label(bars, padding=2, fmt="{:,.0f}")
    axes.set_xlabel(label)
    axes.set_title(f"{counted.capitalize()} by {label.removesuffix(', at most')}", loc="left")
    _style_axes(axes, "y")


def _style_axes(axes: Axes, along: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == int(value) else "")
    axes.grid(axis=along, alpha=0.3)
    axes.set_axisbelow(True)
