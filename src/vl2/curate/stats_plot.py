"""Pictures of `Stats`: tokens by group, tiles per image, lengths of records."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl2.curate.stats import Groups, Stats, largest_first
from vl2.data.store.files import needs_extra
from vl2.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT_COLOR, VISUAL_COLOR = "#0072B2", "#E69F00"  # Okabe and Ito (2008)
MAX_BARS = 20  # of groups; the others are summed up in the last bar


def save_plots(stats: Stats, folder: str) -> list[Path]:
    """Write every plot as a PNG into the folder, which is made. UserError if it cannot be written."""
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
        # A name in a script that the font lacks is drawn as boxes.
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
    # Names come from strangers: "$" would start a formula.
    axes.set_yticks(places, [row[0][:40].replace("$", r"\$") for row in rows])
    axes.invert_yaxis()
    axes.set_title(f"Tokens {title}", loc="left")
    _finish(axes, "x")
    if rows:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _draw_histogram(axes: Axes, counts: dict[int, int], label: str, counted: str) -> None:
    values = sorted(counts)
    bars = axes.bar([str(value) for value in values], [counts[value] for value in values], color=TEXT_COLOR)
    axes.bar_label(bars, padding=2, fmt="{:,.0f}")
    axes.set_xlabel(label)
    axes.set_title(f"{counted.capitalize()} by {label.removesuffix(', at most')}", loc="left")
    _finish(axes, "y")


def _finish(axes: Axes, along: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == int(value) else "")
    axes.grid(axis=along, alpha=0.3)
    axes.set_axisbelow(True)
