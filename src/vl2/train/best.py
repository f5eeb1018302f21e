"""Watch one loss that a run evaluates: keep the weights where it was lowest, and stop when it no longer falls.

The evaluated losses are read again from metrics.jsonl when a run is resumed, so the decision does not depend on where
the run was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vl2.train.metrics import METRICS, read_metrics

STILL_FALLS = 0.05  # a last evaluation this much below the best before it says that more steps would help


class LossWatch:
    """The evaluations of one loss during a run."""

    def __init__(self, name: str, *, patience: int | None) -> None:
        """Watch the score `name`. After `patience` evaluations without a new lowest loss, training is to stop."""
        self.name, self.patience = name, patience
        self.losses: dict[int, float] = {}  # by step

    def read(self, run_folder: Path, last_step: int) -> None:
        """Read the losses up to a step from the metrics of a run that is resumed."""
        self.losses = {step: loss for step, loss in evaluated(run_folder, self.name) if step <= last_step}

    def add(self, step: int, scores: Mapping[str, float]) -> None:
        self.losses[step] = scores[self.name]

    @property
    def best_step(self) -> int | None:
        """The first step with the lowest loss; None before the first evaluation, or if no loss is a number."""
        numbers = {step: loss for step, loss in self.losses.items() if loss == loss}  # without NaN
        return min(numbers, key=lambda step: (numbers[step], step)) if numbers else None

    @property
    def has_stopped_falling(self) -> bool:
        if self.patience is None or not self.losses:
            return False
        steps = sorted(self.losses)
        since = steps if self.best_step is None else [step for step in steps if step > self.best_step]
        return len(since) >= self.patience


def evaluated(run_folder: Path, name: str) -> list[tuple[int, float]]:
    """Return the (step, value) of every evaluation of a score, from the metrics of a run. A null is read as NaN."""
    if not (run_folder / METRICS).is_file():
        return []
    found = read_metrics(run_folder)
    values = [(line["step"], line["evaluation"][name]) for line in found if name in line.get("evaluation", {})]
    return [(step, float("nan") if value is None else float(value)) for step, value in values]


def still_falls(losses: Sequence[float]) -> bool:
    """Return whether the last loss is clearly the lowest, so that more steps would probably lower it further."""
    return len(losses) > 1 and losses[-1] < min(losses[:-1]) * (1 - STILL_FALLS)
