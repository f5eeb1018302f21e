"""How a training run shows its steps."""

from __future__ import annotations

from typing import TextIO

from vl2.progress import ProgressDisplay
from vl2.train.metrics import StepMetrics


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
