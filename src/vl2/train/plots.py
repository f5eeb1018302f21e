"""Plot a run from its metrics.jsonl: loss, learning rate, expert load and evaluations, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.train.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito (2008), which is safe for most color-blind readers; further lines repeat it dashed.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
DASHES = ("-", "--", ":")
ENDINGS = (".png", ".svg")
_SMOOTHED = 60  # the smoothing window is the length of the curve divided by this
_MOST_COLUMNS = 400  # columns of the heat map; longer runs are thinned

Lines = Sequence[Mapping[str, Any]]


def save_run_plots(run_folder: Path, out: Path | None = None) -> list[Path]:
    """Write the plots of a run to its folder `plots` or to `out`, and return their paths.

    Raise UserError if the run has no steps or evaluations, or if matplotlib is missing.
    """
    lines = list(read_metrics(run_folder))
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "evaluation" in line]
    if not steps and not evaluations:
        raise UserError(f"the run in {run_folder} has no steps yet: there is nothing to draw")
    drawings: dict[str, Callable[[Figure], None]] = {}
    if steps:
        drawings["loss"] = lambda figure: _draw_loss(figure.subplots(), steps)
        drawings["learning_rate"] = lambda figure: _draw_rate(figure, steps)
        if steps[-1]["expert_load"]:
            drawings["expert_load"] = lambda figure: _draw_load(figure, steps)
    if evaluations:
        drawings["evaluation"] = lambda figure: _draw_evaluations(figure.subplots(), evaluations)
    return _save(drawings, out or run_folder / "plots")


def _save(drawings: Mapping[str, Callable[[Figure], None]], folder: Path) -> list[Path]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"plots need matplotlib: {install_extra('train')}") from None
    paths: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Fix ids and dates in the SVG, so that the same run gives identical files.
        with matplotlib.rc_context({"svg.hashsalt": "vl2", "svg.fonttype": "none"}):
            for name, draw in drawings.items():
                figure = Figure(figsize=(8, 4.5), layout="constrained")
                draw(figure)
                for ending in ENDINGS:
                    paths.append(folder / f"{name}{ending}")
                    figure.savefig(paths[-1], dpi=120, metadata={"Date": None} if ending == ".svg" else None)
                    figure.set_layout_engine("none")  # keep the layout; computing it takes as long as drawing
    except OSError as error:
        raise UserError(f"cannot write plots to {folder}: {error.strerror or error}") from None
    return paths


def _draw_loss(axes: Axes, lines: Lines) -> None:
    """Plot the smoothed loss of every category, and the total loss raw (faint) and smoothed (bold)."""
    steps = [line["step"] for line in lines]
    total = [_number(line["loss"]) for line in lines]
    axes.plot(steps, total, color="black", alpha=0.18, linewidth=0.8)
    categories = sorted({name for line in lines for name in line["loss_by_category"]})
    if len(categories) > 1:
        for i, name in enumerate(categories):
            values = [_number(line["loss_by_category"].get(name)) for line in lines]
            axes.plot(steps, smooth(values), label=_plain(name), linewidth=1.2, **_style(i))
    axes.plot(steps, smooth(total), color="black", label="all", linewidth=1.8)
    dropped = [line["step"] for line in lines if line.get("discarded")]
    if dropped:
        axes.plot(
            dropped,
            [0.02] * len(dropped),
            "|",
            color="#D55E00",
            transform=axes.get_xaxis_transform(),
            label="discarded",
        )
    axes.set_title("Loss per trained token", loc="left")
    _style_axes(axes)
    _legend(axes)


def _draw_rate(figure: Figure, lines: Lines) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [line["step"] for line in lines]
    upper.plot(steps, [line["learning_rate"] for line in lines], color=COLORS[0])
    upper.set_title("Learning rate", loc="left")
    upper.set_ylim(bottom=0)
    norms = [_number(line["grad_norm"]) for line in lines]
    lower.plot(steps, norms, color="black", alpha=0.18, linewidth=0.8)
    parts = list(dict.fromkeys(part for line in lines for part in line.get("grad_norm_by_part", {})))
    for i, part in enumerate(parts):
        values = [_number(line.get("grad_norm_by_part", {}).get(part)) for line in lines]
        lower.plot(steps, smooth(values), label=_plain(part), linewidth=1.0, **_style(i))
    lower.plot(steps, smooth(norms), color="black", label="all", linewidth=1.8)
    lower.set_title("Norm of the gradient before clipping", loc="left")
    lower.set_yscale("log")
    _style_axes(upper, has_label=False)
    _style_axes(lower)
    _legend(lower)


def _draw_load(figure: Figure, lines: Lines) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
    lines = [line for line in lines if line["expert_load"]]
    steps = [line["step"] for line in lines]
    layers = [smooth(column) for column in zip(*(line["expert_load"] for line in lines), strict=True)]
    thin = max(1, len(steps) // _MOST_COLUMNS)
    image = upper.pcolormesh(
        [*_edges(steps[::thin])],
        [i + 0.5 for i in range(len(layers) + 1)],
        [layer[::thin] for layer in layers],
        cmap="viridis",
        vmin=1,
        shading="flat",
        rasterized=True,
    )
    figure.colorbar(image, ax=upper, label="max / mean")
    upper.set_yticks(range(1, len(layers) + 1, max(1, len(layers) // 6)))
    upper.set_ylabel("MoE layer")
    upper.set_title("Load of the fullest expert over the mean", loc="left")
    lower.plot(steps, [max(values) for values in zip(*layers, strict=True)], color=COLORS[3], label="worst layer")
    lower.plot(steps, [sum(v) / len(v) for v in zip(*layers, strict=True)], color=COLORS[0], label="mean of the layers")
    lower.axhline(1, color="black", linewidth=0.8, linestyle=":", label="even")
    lower.set_ylim(bottom=0.9)
    _style_axes(lower)
    # Put the legend above the axes: beside them it would separate the heat map from its scale, inside it hides lines.
    lower.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize="small")


def _draw_evaluations(axes: Axes, lines: Lines) -> None:
    names = sorted({name for line in lines for name in line["evaluation"]})
    for i, name in enumerate(names):
        points = [(line["step"], value) for line in lines if (value := line["evaluation"].get(name)) is not None]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=_plain(name), **_style(i))
    axes.set_title("Evaluations during training", loc="left")
    _style_axes(axes)
    _legend(axes)


def smooth(values: Sequence[float]) -> list[float]:
    """Return an exponential moving average over about a sixtieth of the curve; NaN values are skipped."""
    weight = 1 / max(1.0, len(values) / _SMOOTHED)
    out: list[float] = []
    mean, total = 0.0, 0.0
    for value in values:
        if value == value:
            mean, total = mean + weight * (value - mean), total + weight * (1 - total)
        out.append(mean / total if total else float("nan"))  # dividing by the total corrects the bias towards 0
    return out


def _edges(steps: Sequence[int]) -> list[float]:
    """Return the borders of heat map cells around the steps."""
    inner = [(a + b) / 2 for a, b in pairwise(steps)]
    first = steps[0] - ((inner[0] - steps[0]) if inner else 0.5)
    return [first, *inner, steps[-1] + ((steps[-1] - inner[-1]) if inner else 0.5)]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("$", r"\$")  # "$" would start a formula


def _style(i: int) -> dict[str, Any]:
    return {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i // len(COLORS) % len(DASHES)]}


def _style_axes(axes: Axes, *, has_label: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if has_label:
        axes.set_xlabel("step")


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
