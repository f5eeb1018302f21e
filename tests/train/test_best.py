"""When the best weights were, and when a run no longer gains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl2.train.best import LossWatch, still_falls

NAN = float("nan")


def watched(losses: list[float], patience: int | None = 2) -> LossWatch:
    watch = LossWatch("held-out/loss", patience=patience)
    for number, loss in enumerate(losses):
        watch.add(10 * (number + 1), {"held-out/loss": loss, "other": 0.0})
    return watch


@pytest.mark.parametrize(
    ("losses", "best", "stops"),
    [
        ([], None, False),
        ([3.0, 2.0], 20, False),
        ([3.0, 2.0, 2.5], 20, False),
        ([3.0, 2.0, 2.5, 2.1], 20, True),
        ([3.0, 2.0, 2.0, 2.0], 20, True),  # equal is not lower
        ([3.0, 2.0, 2.5, 1.9], 40, False),
        ([3.0, NAN, 2.0], 30, False),
        ([NAN, NAN], None, True),
    ],
)
def test_the_lowest_loss_is_the_best_and_too_many_without_a_lower_one_end_the_run(
    losses: list[float], best: int | None, stops: bool
) -> None:
    watch = watched(losses)
    assert (watch.best_step, watch.has_stopped_falling) == (best, stops)
    assert not watched(losses, patience=None).has_stopped_falling


def test_a_resumed_run_knows_what_was_evaluated_up_to_its_step(tmp_path: Path) -> None:
    lines = [{"step": step, "evaluation": {"held-out/loss": loss}} for step, loss in ((2, 3.0), (4, None), (6, 1.0))]
    lines.insert(1, {"step": 3, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    watch = LossWatch("held-out/loss", patience=3)
    watch.read(tmp_path, last_step=5)
    assert list(watch.losses) == [2, 4]
    assert watch.best_step == 2
    watch.read(tmp_path / "none", last_step=5)
    assert watch.losses == {}


@pytest.mark.parametrize(
    ("losses", "falls"),
    [([], False), ([1.0], False), ([2.0, 1.0], True), ([2.0, 1.98], False), ([1.0, 2.0, 1.5], False)],
)
def test_a_loss_still_falls_if_the_last_one_is_clearly_the_lowest(losses: list[float], falls: bool) -> None:
    assert still_falls(losses) == falls
