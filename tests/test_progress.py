"""Progress displays: what a terminal and a pipe get, and what the time left is reckoned from."""

from __future__ import annotations

import io

import pytest

from vl2.progress import ProgressDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_that_of_this_runs_pace() -> None:
    clock = Clock()
    with ProgressDisplay(30, done_before=10, quiet=True, clock=clock) as display:
        assert display.time_left() == ""
        clock.now, display.done = 100.0, 20
        assert display.time_left() == "1 min 40 s left"


def test_a_pipe_gets_a_line_only_after_a_while() -> None:
    clock, out = Clock(), io.StringIO()
    with ProgressDisplay(3, file=out, clock=clock) as display:
        for display.done, clock.now in ((1, 10.0), (2, 31.0), (3, 40.0)):
            display.show("", line=f"{display.done} of 3")
    assert out.getvalue() == "2 of 3\n"


@pytest.mark.parametrize("total", [1000, None])
def test_a_narrow_terminal_cuts_the_text_and_not_the_count(total: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    with ProgressDisplay(total, file=out) as display:
        display.done = 512
        display.show("a long text " * 10)
    assert "512/" in out.getvalue()
    assert "a long" in out.getvalue()
    assert "a long text " * 10 not in out.getvalue()
