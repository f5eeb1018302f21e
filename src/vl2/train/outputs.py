"""Where a run tells what it measures: stderr, metrics.jsonl, TensorBoard where it is installed, what the recipe adds.

The first rank writes; on the others all of this does nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from vl2.progress import ProgressDisplay
from vl2.train.metrics import MetricsFile, StepMetrics
from vl2.train.ranks import Ranks
from vl2.train.recipe import Recipe
from vl2.train.trackers import Tracker, TrackerName, open_tracker


class Outputs:
    """Takes the steps and evaluations of a run. Closed when it is left."""

    def __init__(self, recipe: Recipe, ranks: Ranks, step: int) -> None:
        """Go on after `step`."""
        self._file: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        if ranks.is_first:
            folder = Path(recipe.run.folder)
            self._file = MetricsFile(folder, last_step=step)
            config = {"recipe": recipe.to_toml()}
            self._trackers = [open_tracker(name, folder, config, step + 1) for name in tracker_names(recipe)]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for output in (*self._trackers, *((self._file,) if self._file is not None else ())):
            output.close()

    def step(self, metrics: StepMetrics) -> None:
        if self._file is not None:
            self._file.append(metrics.to_dict())
        for tracker in self._trackers:
            tracker.log(metrics.step, metrics.scalars())

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        if self._file is not None:
            self._file.append({"step": step, "evaluation": dict(scores)})
        for tracker in self._trackers:
            tracker.log(step, {f"evaluation/{name}": value for name, value in scores.items()})


def tracker_names(recipe: Recipe) -> tuple[TrackerName, ...]:
    """Return the trackers of a run: TensorBoard wherever it can be had, then those that the recipe asks for."""
    asked = recipe.run.trackers
    if "tensorboard" not in asked and importlib.util.find_spec("tensorboard") is not None:
        return ("tensorboard", *asked)
    return asked


# How a training run shows its steps.


class TrainProgress(ProgressDisplay):
    """Shows the steps of a run on stderr. Enter it before the first step."""

    def __init__(
        self, num_steps: int, first_step: int, *, log_every: int = 1, quiet: bool = False, file: TextIO | None = None
    ) -> None:
        super().__init__(num_steps, done_before=first_step, quiet=quiet, is_kept=True, file=file)
        self._num_steps = num_steps
        self._log_every = log_every

    def step(self, metrics: StepMetrics) -> None:
        """Show a step that is done."""
        self.done = metrics.step
        is_due = metrics.step % self._log_every == 0 or metrics.step == self._num_steps
        line = f"vl2: step {metrics.step:,}/{self._num_steps:,}  {describe(metrics)}  {self.time_left()}"
        self.show(describe(metrics), line=line if is_due else None, line_every_s=0.0)


def describe(metrics: StepMetrics) -> str:
    """Return the figures of a step that one watches."""
    parts = [
        f"loss {metrics.loss:.4f}",
        f"rate {metrics.learning_rate:.2e}",
        f"norm {metrics.grad_norm:.2f}",
        f"{metrics.tokens_per_s:,.0f} tokens/s",
    ]
    if metrics.mfu is not None:
        parts.append(f"MFU {metrics.mfu:.0%}")
    if metrics.discarded:
        parts.append(f"discarded: {metrics.discarded}")
    return "  ".join(parts)
