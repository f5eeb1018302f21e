"""What stops a run: signals are noted, all ranks agree, the clock counts, and a second interrupt waits for nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.two_ranks import TwoRanks
from vl2.train.ranks import ONE, Ranks
from vl2.train.stopping import Ended, Stop

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair() -> Iterator[TwoRanks]:
    two = TwoRanks()
    yield two
    two.close()


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_is_noted_and_the_handlers_of_before_come_back(number: signal.Signals, word: Ended) -> None:
    before = signal.getsignal(number)
    with Stop(None, ONE) as stop:
        assert stop.why() is None
        os.kill(os.getpid(), number)
        assert stop.why() == word
    assert signal.getsignal(number) is before


def test_the_time_limit_is_a_reason_from_its_minute_on() -> None:
    now = [100.0]
    stop = Stop(2.0, ONE, clock=lambda: now[0])
    now[0] = 219.0
    assert stop.why() is None
    now[0] = 221.0
    assert stop.why() == "out of time"


def test_another_thread_than_the_main_one_asks_for_no_signals() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with Stop(None, ONE) as stop:
            seen.append((stop.why(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def stop_where_one_is_asked(ranks: Ranks, both: bool) -> list[Ended | None]:
    with Stop(None, ranks) as stop:
        answers = [stop.why()]
        if ranks.is_first:
            os.kill(os.getpid(), signal.SIGTERM)
        elif both:
            os.kill(os.getpid(), signal.SIGINT)
        return [*answers, stop.why()]


@pytest.mark.parametrize(("both", "word"), [(False, "terminated"), (True, "interrupted")])
def test_what_one_rank_is_asked_for_stops_all_at_the_same_step(pair: TwoRanks, both: bool, word: Ended) -> None:
    assert pair.run(stop_where_one_is_asked, both) == [[None, word]] * 2


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    program = (
        "import os, signal\nfrom vl2.train.ranks import ONE\nfrom vl2.train.stopping import Stop\n"
        "with Stop(None, ONE) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print(stop.why(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('still here', flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )
    assert (done.returncode, done.stdout) == (130, "interrupted\n")
    assert done.stderr.strip().endswith("vl2: stopped immediately; --resume continues from the last checkpoint")
