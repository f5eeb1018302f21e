"""The simulated pipeline keeps its order, loses no action, and has the bubble that the formula gives."""

from __future__ import annotations

import pytest

from vl2.plan.timeline import Action, max_in_flight, rank_schedule, simulate


def run(num_ranks: int, num_segments: int, num_batches: int, transfer_s: float = 0.0):  # type: ignore[no-untyped-def]
    return simulate(
        num_ranks,
        num_segments,
        num_batches,
        duration_s=lambda action: 1.0 if action.direction == "forward" else 2.0,
        transfer_s=lambda _: transfer_s,
    )


@pytest.mark.parametrize(
    ("num_ranks", "loops", "num_batches"), [(1, 1, 3), (2, 1, 2), (4, 1, 12), (4, 2, 8), (3, 3, 6)]
)
def test_every_micro_batch_goes_through_every_segment_both_ways(num_ranks: int, loops: int, num_batches: int) -> None:
    timeline = run(num_ranks, num_ranks * loops, num_batches)
    actions = [event.action for event in timeline.events]
    assert len(set(actions)) == len(actions) == 2 * num_ranks * loops * num_batches


@pytest.mark.parametrize(("num_ranks", "loops", "num_batches"), [(4, 1, 12), (4, 2, 8), (2, 2, 6)])
def test_no_action_begins_before_what_it_needs_has_arrived(num_ranks: int, loops: int, num_batches: int) -> None:
    timeline = run(num_ranks, num_ranks * loops, num_batches, transfer_s=0.25)
    end = {event.action: event.end_s for event in timeline.events}
    last = num_ranks * loops - 1
    for event in timeline.events:
        action = event.action
        step = -1 if action.direction == "forward" else 1
        other = action.segment + step
        if 0 <= other <= last:
            wait = 0.25 if num_ranks > 1 else 0.0
            assert event.start_s >= end[Action(segment=other, batch=action.batch, direction=action.direction)] + wait
        if action.direction == "backward":
            assert event.start_s >= end[Action(segment=action.segment, batch=action.batch, direction="forward")]


@pytest.mark.parametrize(("num_ranks", "loops", "num_batches"), [(4, 1, 4), (4, 1, 16), (4, 2, 16), (8, 2, 16)])
def test_even_stages_have_the_known_bubble(num_ranks: int, loops: int, num_batches: int) -> None:
    timeline = run(num_ranks, num_ranks * loops, num_batches)
    lost = (num_ranks - 1) / loops  # in units of a rank's whole forward and backward
    assert timeline.bubble == pytest.approx(lost / (num_batches + lost))


def test_one_slow_stage_makes_the_others_wait() -> None:
    timeline = simulate(
        4, 4, 16, duration_s=lambda action: 4.0 if action.segment == 0 else 1.0, transfer_s=lambda _: 0.0
    )
    assert timeline.busy_s[0] > 0.9 * timeline.length_s
    assert timeline.bubble > 0.5


def test_the_first_stage_keeps_as_many_micro_batches_as_there_are_stages() -> None:
    assert [max_in_flight(4, 4, 12, rank) for rank in range(4)] == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("num_ranks", "loops", "num_batches"), [(4, 1, 2), (4, 1, 12), (4, 2, 8), (4, 2, 4), (3, 3, 6)]
)
def test_a_rank_holds_what_went_forward_and_not_yet_backward(num_ranks: int, loops: int, num_batches: int) -> None:
    for rank in range(num_ranks):
        held = most = 0
        for event in run(num_ranks, num_ranks * loops, num_batches, transfer_s=0.3).events:
            if event.rank == rank:
                held += 1 if event.action.direction == "forward" else -1
                most = max(most, held)
        assert max_in_flight(num_ranks, num_ranks * loops, num_batches, rank) == most


def test_a_rank_goes_forward_and_backward_in_turn_once_it_is_warm() -> None:
    directions = [action.direction[0] for action in rank_schedule(2, 2, 4, 0)]
    assert "".join(directions) == "ffbfbfbb"


def test_the_gradient_of_a_segments_output_takes_as_long_on_its_way_as_the_output() -> None:
    """Two ranks, one micro-batch: a, send, b, b's backward, send back, a's backward."""
    timeline = simulate(2, 2, 1, duration_s=lambda _: 1.0, transfer_s=lambda segment: 0.25 if segment == 0 else 100.0)
    assert timeline.length_s == pytest.approx(1 + 0.25 + 1 + 1 + 0.25 + 1)
