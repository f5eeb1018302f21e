"""Simulate one pipeline step as discrete events, and draw its timeline.

Each rank runs the actions of its schedule in order. An action starts when its rank is free and its inputs have arrived,
and takes its duration. Times are seconds from the start of the step.

Source: arXiv 2104.04473 (1F1B and its interleaved form).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vl2.errors import UserError
from vl2.optional_imports import install_extra

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class Action:
    """The forward or backward pass of one micro-batch through one pipeline segment."""

    segment: int
    batch: int
    direction: Direction


@dataclass(frozen=True, kw_only=True)
class Event:
    """An action with its start and end on a rank."""

    rank: int
    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All events of one pipeline step."""

    num_ranks: int
    events: tuple[Event, ...]

    @property
    def length_s(self) -> float:
        return max((event.end_s for event in self.events), default=0.0)

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Return the seconds that each rank computes."""
        busy = [0.0] * self.num_ranks
        for event in self.events:
            busy[event.rank] += event.end_s - event.start_s
        return tuple(busy)

    @property
    def bubble(self) -> float:
        """Return the share of all ranks' time that is spent waiting."""
        return 1 - sum(self.busy_s) / (self.num_ranks * self.length_s) if self.length_s else 0.0


def rank_schedule(num_ranks: int, num_segments: int, num_batches: int, rank: int) -> list[Action]:
    """Return the actions of a rank in order: 1F1B with one segment per rank, interleaved 1F1B with several.

    Segment i is on rank i % num_ranks. With several segments, micro-batches go in rounds of `num_ranks`; the last round
    may have fewer.
    """
    assert num_segments % num_ranks == 0, f"{num_segments} segments on {num_ranks} ranks"
    loops = num_segments // num_ranks
    forward = _by_rounds(num_ranks, loops, num_batches, rank, "forward")
    backward = _by_rounds(num_ranks, loops, num_batches, rank, "backward")
    warm_up = min(_warm_up(num_ranks, loops, rank), len(forward))
    actions = forward[:warm_up]
    for ahead, behind in zip(forward[warm_up:], backward, strict=False):
        actions += [ahead, behind]
    return actions + backward[len(forward) - warm_up :]


def max_in_flight(num_ranks: int, num_segments: int, num_batches: int, rank: int) -> int:
    """Return the largest number of micro-batches whose activations a rank holds at once, over all its segments.

    It does not depend on durations: after the forward passes that warm it up, a rank goes forward and backward in turn.
    """
    loops = num_segments // num_ranks
    return min(_warm_up(num_ranks, loops, rank) + 1, loops * num_batches)


def _warm_up(num_ranks: int, loops: int, rank: int) -> int:
    """Return how many forward passes a rank runs before its first backward pass follows one."""
    after = num_ranks - rank - 1  # ranks
    return after if loops == 1 else (loops - 1) * num_ranks + 2 * after


def _by_rounds(num_ranks: int, loops: int, num_batches: int, rank: int, direction: Direction) -> list[Action]:
    actions = []
    for first in range(0, num_batches, num_ranks):
        for loop in range(loops):
            segment = (loop if direction == "forward" else loops - 1 - loop) * num_ranks + rank
            actions += [
                Action(segment=segment, batch=batch, direction=direction)
                for batch in range(first, min(first + num_ranks, num_batches))
            ]
    return actions


def simulate(
    num_ranks: int,
    num_segments: int,
    num_batches: int,
    *,
    duration_s: Callable[[Action], float],
    transfer_s: Callable[[int], float],
) -> Timeline:
    """Simulate a step.

    `transfer_s` takes a segment and returns the seconds to send its output to the next segment's rank. The gradient of
    the output takes as long on its way back.
    """
    schedules = [rank_schedule(num_ranks, num_segments, num_batches, rank) for rank in range(num_ranks)]
    free, position = [0.0] * num_ranks, [0] * num_ranks
    transfers = [transfer_s(segment) if num_ranks > 1 else 0.0 for segment in range(num_segments)]
    ended: dict[Direction, list[dict[int, float]]] = {  # segment -> micro-batch -> seconds
        "forward": [{} for _ in range(num_segments)],
        "backward": [{} for _ in range(num_segments)],
    }

    def arrived_s(action: Action) -> float | None:
        """Return when the inputs of an action have arrived, or None if they are not computed yet."""
        segment, batch = action.segment, action.batch
        if action.direction == "forward":
            if segment == 0:
                return 0.0
            sent = ended["forward"][segment - 1].get(batch)
            return None if sent is None else sent + transfers[segment - 1]
        own = ended["forward"][segment].get(batch)
        if segment == num_segments - 1 or own is None:
            return own
        sent = ended["backward"][segment + 1].get(batch)
        return None if sent is None else max(own, sent + transfers[segment])

    events: list[Event] = []
    while any(position[rank] < len(schedules[rank]) for rank in range(num_ranks)):
        is_stuck = True
        for rank in range(num_ranks):
            while position[rank] < len(schedules[rank]):
                action = schedules[rank][position[rank]]
                arrived = arrived_s(action)
                if arrived is None:
                    break
                start = max(free[rank], arrived)
                end = start + duration_s(action)
                events.append(Event(rank=rank, action=action, start_s=start, end_s=end))
                ended[action.direction][action.segment][action.batch] = free[rank] = end
                position[rank] += 1
                is_stuck = False
        assert not is_stuck, f"the schedule of {num_ranks} ranks and {num_segments} segments waits for itself"
    return Timeline(num_ranks=num_ranks, events=tuple(events))


# (direction, 0 for a rank's first segment or 1 for a later one) -> color
_COLORS = {
    ("forward", 0): "#4c78a8", ("backward", 0): "#f58518", ("forward", 1): "#9ecae9", ("backward", 1): "#ffbf79",
}  # fmt: skip


def draw_timelines(timelines: Sequence[Timeline], titles: Sequence[str], path: Path) -> None:
    """Draw the timelines into an image file. Its suffix selects the format.

    Raise UserError if matplotlib is missing or the file cannot be written.
    """
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
                color=_COLORS[event.action.direction, loop],
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
        handles=[Patch(color=color, label=name) for name, color in zip(names, _COLORS.values(), strict=True)],
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
