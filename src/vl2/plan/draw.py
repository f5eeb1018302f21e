"""A picture of a pipeline's step: one row for each rank, forward and backward of every micro-batch, and the gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vl2.errors import UserError
from vl2.install_hint import install_extra
from vl2.plan.timeline import Timeline

# Forward and backward, of a rank's first segment and of its later ones.
_COLOURS = {
    ("forward", 0): "#4c78a8", ("backward", 0): "#f58518", ("forward", 1): "#9ecae9", ("backward", 1): "#ffbf79",
}  # fmt: skip


def draw_timelines(timelines: Sequence[Timeline], titles: Sequence[str], path: Path) -> None:
    """Write a picture; its ending says of which kind. UserError if it cannot be drawn or written."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.patches import Patch
    except ImportError:
        raise UserError(f"pictures need matplotlib: {install_extra('train')}") from None
    rows = sum(timeline.num_ranks for timeline in timelines)
    figure, axes = pyplot.subplots(len(timelines), 1, figsize=(12, 1.6 + 0.35 * rows), squeeze=False)
    for axis, timeline, title in zip(axes[:, 0], timelines, titles, strict=True):
        for event in timeline.events:
            loop = min(event.action.segment // timeline.num_ranks, 1)
            axis.barh(
                event.rank,
                event.end_s - event.start_s,
                left=event.start_s,
                height=0.9,
                color=_COLOURS[event.action.direction, loop],
                edgecolor="white",
                linewidth=0.4,
            )
        axis.set_yticks(range(timeline.num_ranks))
        axis.invert_yaxis()
        axis.set_ylabel("stage")
        axis.set_xlabel("seconds")
        axis.set_title(f"{title}: {timeline.length_s:.3g} s, bubble {timeline.bubble:.1%}")
    names = ("forward", "backward", "forward, second segment", "backward, second segment")
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in zip(names, _COLOURS.values(), strict=True)],
        loc="lower center",
        ncols=4,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None
    finally:
        pyplot.close(figure)
