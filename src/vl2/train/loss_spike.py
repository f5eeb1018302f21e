"""Skip the update of a step if its loss or gradient norm is not finite or is a spike, or if it has no trained tokens.

A value is a spike if it is many median absolute deviations above the median of a running window, so that one setting
suits a loss of 8 with large batches as well as a loss of 0.1 with small ones. Only accepted steps enter the window.
All ranks see the same global numbers and therefore decide alike. The state is part of a checkpoint, so a resumed run
decides as an uninterrupted one would.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vl2.errors import UserError

NOTHING_TRAINED = "data held no token to train"
_LEAST_SPREAD = 0.05  # of the median; otherwise any change after a window of equal values would be a spike


@dataclass(frozen=True, kw_only=True)
class LossSpikeOptions:
    """The conditions for discarding a step and for stopping the run."""

    spike_factor: float = 20.0
    """discard a step this many median deviations above the median; 0 disables this"""
    window: int = 64
    """accepted steps over which the median is taken"""
    least_steps: int = 20
    """accepted steps before spikes are detected"""
    most_discarded: int = 5
    """stop after this many discarded steps in a row"""

    def __post_init__(self) -> None:
        if self.spike_factor < 0 or self.most_discarded < 1 or not 2 <= self.least_steps <= self.window:
            raise UserError(
                "guard: spike_factor must not be negative, most_discarded at least 1, least_steps in 2..window, got "
                f"{self.spike_factor:g}, {self.most_discarded}, {self.least_steps} and {self.window}"
            )


class LossSpikeSkip:
    """Decides for each step whether to skip the update."""

    def __init__(self, options: LossSpikeOptions) -> None:
        self.options = options
        self.num_discarded = 0
        self.num_in_a_row = 0
        self._recent: dict[str, deque[float]] = {
            name: deque(maxlen=options.window) for name in ("loss", "gradient norm")
        }

    def judge(self, loss: float, grad_norm: float, num_trained: int) -> str | None:
        """Return the reason for discarding a step, or None if it is accepted.

        A step without trained tokens (`num_trained` 0) is discarded, because its data could not be read.
        """
        values = {"loss": loss, "gradient norm": grad_norm}
        if num_trained:
            why = next((why for name, value in values.items() if (why := self._find_fault(name, value))), None)
        else:
            why = NOTHING_TRAINED
        if why is None:
            self.num_in_a_row = 0
            for name, value in values.items():
                self._recent[name].append(value)
        else:
            self.num_discarded += 1
            self.num_in_a_row += 1
        return why

    @property
    def must_stop(self) -> bool:
        """Whether so many steps in a row were discarded that the run should stop."""
        return self.num_in_a_row >= self.options.most_discarded

    def state_dict(self) -> dict[str, Any]:
        recent = {name: list(values) for name, values in self._recent.items()}
        return {"num_discarded": self.num_discarded, "num_in_a_row": self.num_in_a_row, "recent": recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_discarded, self.num_in_a_row = int(state["num_discarded"]), int(state["num_in_a_row"])
        for name, values in self._recent.items():
            values.clear()
            values.extend(state["recent"][name])

    def _find_fault(self, name: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"{name} is {value}"
        recent = self._recent[name]
        if not self.options.spike_factor or len(recent) < self.options.least_steps:
            return None
        median = statistics.median(recent)
        spread = statistics.median(abs(one - median) for one in recent)
        limit = median + self.options.spike_factor * max(spread, _LEAST_SPREAD * median)
        return f"{name} {value:.4g} is far above its median {median:.4g}" if value > limit else None
