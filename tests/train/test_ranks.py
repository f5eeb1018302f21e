"""Ranks agree on sums and objects, and a wrong environment is said in one line."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from tests.train.two_ranks import TwoRanks, environment
from vl2.errors import UserError
from vl2.train.ranks import ONE, Ranks, RankZeroSection, join

TORCHRUN = tuple(environment(0, 1, 29500))


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def exchange(ranks: Ranks) -> dict[str, Any]:
    mine = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
    place = (ranks.rank, ranks.size, ranks.is_first, ranks.device.type)
    results = {
        "place": place,
        "sum": ranks.sum_(mine.clone()).tolist(),
        "max": ranks.max_(torch.tensor([ranks.rank, -ranks.rank])).tolist(),
        "first": ranks.broadcast_(mine.clone()).tolist(),
        "object": ranks.broadcast_object({"seed": ranks.rank + 7}),
        "objects": ranks.gather_objects(f"rank {ranks.rank}"),
    }
    ranks.barrier()
    return results


def test_two_ranks_get_the_same_sums_largest_values_and_objects(pair: TwoRanks) -> None:
    first, second = pair.run(exchange)
    assert (first.pop("place"), second.pop("place")) == ((0, 2, True, "cpu"), (1, 2, False, "cpu"))
    assert first == second
    assert first == {
        "sum": [3.0, 30.0],
        "max": [1, 0],
        "first": [1.0, 10.0],
        "object": {"seed": 7},
        "objects": ["rank 0", "rank 1"],
    }


def test_one_rank_alone_needs_no_process_group_and_changes_nothing() -> None:
    assert exchange(ONE) == {
        "place": (0, 1, True, "cpu"),
        "sum": [1.0, 10.0],
        "max": [0, 0],
        "first": [1.0, 10.0],
        "object": {"seed": 7},
        "objects": ["rank 0"],
    }


def come_only_if_first(ranks: Ranks) -> None:
    if ranks.is_first:
        ranks.barrier()


def test_a_rank_that_stays_away_is_not_waited_for_for_ever() -> None:
    two = TwoRanks(collective_s=1.0)
    with pytest.raises(AssertionError, match=r"(?is)rank 0: .*timed out"):
        two.run(come_only_if_first)


def count_on_rank_zero(ranks: Ranks, timeout_s: float, long_s: float) -> bool:
    section, until = RankZeroSection(ranks, timeout_s), time.monotonic() + long_s
    if ranks.is_first:
        while time.monotonic() < until:
            section.heartbeat()
            time.sleep(0.01)
        section.end()
    else:
        section.wait()
    ranks.barrier()
    return True


def test_ranks_wait_for_the_work_of_the_first_beyond_the_limit_for_an_answer() -> None:
    two = TwoRanks(collective_s=1.0)
    try:
        assert two.run(count_on_rank_zero, 1.0, 2.5) == [True, True]
    finally:
        two.close()


def sleep_on_rank_zero(ranks: Ranks, timeout_s: float, long_s: float, fails: bool) -> str:
    section = RankZeroSection(ranks, timeout_s)
    if not ranks.is_first:
        section.wait()
        return "let go"
    with section.heartbeats():
        time.sleep(long_s)
        if fails:
            raise MemoryError
    return "done"


def test_ranks_wait_for_work_of_the_first_that_says_nothing_itself() -> None:
    two = TwoRanks(collective_s=1.0)
    try:
        assert two.run(sleep_on_rank_zero, 1.0, 2.5, False) == ["done", "let go"]
        with pytest.raises(AssertionError, match=r"(?s)rank 0: .*MemoryError|rank 1: .*(imed out|losed)"):
            two.run(sleep_on_rank_zero, 1.0, 0.1, True)
    finally:
        two.close()


def test_one_rank_alone_tells_nobody_and_fails_as_its_work_does() -> None:
    assert sleep_on_rank_zero(ONE, 1.0, 0.0, False) == "done"
    with pytest.raises(MemoryError):
        sleep_on_rank_zero(ONE, 1.0, 0.0, True)


def test_without_torchrun_a_process_is_alone(bare_environment: pytest.MonkeyPatch) -> None:
    bare_environment.setenv("MASTER_ADDR", "10.0.0.1")  # a cluster sets it for every job
    assert join("cpu") == ONE


def test_torchrun_with_one_process_needs_no_process_group(bare_environment: pytest.MonkeyPatch) -> None:
    for name, value in environment(0, 1, 29500).items():
        bare_environment.setenv(name, value)
    assert join("cpu") == ONE


@pytest.mark.parametrize("missing", TORCHRUN)
def test_an_incomplete_environment_names_what_is_missing(bare_environment: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in environment(1, 2, 29500).items():
        if name != missing:
            bare_environment.setenv(name, value)
    with pytest.raises(UserError, match=rf"missing: {missing}; start with: torchrun"):
        join("cpu")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RANK", "one", "RANK must be a non-negative number, got 'one'"),
        ("RANK", "-1", "RANK must be a non-negative number, got '-1'"),
        ("RANK", "2", r"RANK must be in 0..WORLD_SIZE - 1 \(1\), got 2"),
        ("MASTER_PORT", "http", "MASTER_PORT must be a non-negative number, got 'http'"),
    ],
)
def test_a_wrong_environment_says_what_is_wrong(
    bare_environment: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    for key, given in {**environment(1, 2, 29500), name: value}.items():
        bare_environment.setenv(key, given)
    with pytest.raises(UserError, match=says):
        join("cpu")


def test_a_device_that_is_not_there_is_refused(bare_environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="must be cpu or cuda, got meta"):
        join("meta")
    with pytest.raises(UserError, match="must be auto, cpu, cuda or cuda:N, got gpu"):
        join("gpu")
    bare_environment.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no device cuda:0, this machine has 0"):
        join("cuda")
    assert join("auto") == ONE


def test_ranks_that_never_come_are_given_up(bare_environment: pytest.MonkeyPatch) -> None:
    for name, value in environment(1, 2, 1).items():  # nobody listens on port 1
        bare_environment.setenv(name, value)
    with pytest.raises(UserError, match="rank 1 of 2 could not join the others"):
        join("cpu", timeout_s=1)
