"""Skip steps on loss spikes: those without a token to train, or whose loss or gradient is no number or a spike.

A spike is far above what the run has had of late. "Far" is measured in median absolute deviations of a running window,
so that the same setting fits a loss of 8 with large batches and one of 0.1 with small ones. Only accepted steps enter
the window. Every rank sees the same global numbers and so judges alike. The state is part of a checkpoint: a resumed
run judges as an uninterrupted one.
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
_LEAST_SPREAD = 0.05  # of the median: a window of equal values would call any other a spike


@dataclass(frozen=True, kw_only=True)
class LossSpikeOptions:
    """When a step is discarded, and when the run gives up."""

    spike_factor: float = 20.0
    """discard a step this many median deviations above the median; 0 never does"""
    window: int = 64
    """accepted steps that the median is of"""
    least_steps: int = 20
    """accepted steps before a spike is called one"""
    most_discarded: int = 5
    """stop after this many discarded steps in a row"""

    def __post_init__(self) -> None:
        if self.spike_factor < 0 or self.most_discarded < 1 or not 2 <= self.least_steps <= self.window:
            raise UserError(
                "guard: spike_factor must not be negative, most_discarded at least 1, least_steps in 2..window, got "
                f"{self.spike_factor:g}, {self.most_discarded}, {self.least_steps} and {self.window}"
            )


class LossSpikeSkip:
    """Decides step by step whether to skip the update."""

    def __init__(self, options: LossSpikeOptions) -> None:
        self.options = options
        self.num_discarded = 0
        self.num_in_a_row = 0
        self._recent: dict[str, deque[float]] = {
            name: deque(maxlen=options.window) for name in ("loss", "gradient norm")
        }

    def judge(self, loss: float, grad_norm: float, num_trained: int) -> str | None:
        """Return why the step must be discarded, or None where it is accepted.

        `num_trained` tokens were trained: where there was none the data have gone, and an update would be of nothing.
        """
        values = {"loss": loss, "gradient norm": grad_norm}
        if num_trained:
            why = next((why for name, value in values.items() if (why := self._fault(name, value))), None)
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
    def is_hopeless(self) -> bool:
        return self.num_in_a_row >= self.options.most_discarded

    def state_dict(self) -> dict[str, Any]:
        recent = {name: list(values) for name, values in self._recent.items()}
        return {"num_discarded": self.num_discarded, "num_in_a_row": self.num_in_a_row, "recent": recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_discarded, self.num_in_a_row = int(state["num_discarded"]), int(state["num_in_a_row"])
        for name, values in self._recent.items():
            values.clear()
            values.extend(state["recent"][name])

    def _fault(self, name: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"{name} is {value}"
        recent = self._recent[name]
        if not self.options.spike_factor or len(recent) < self.options.least_steps:
            return None
        median = statistics.median(recent)
        spread = statistics.median(abs(one - median) for one in recent)
        limit = median + self.options.spike_factor * max(spread, _LEAST_SPREAD * median)
        return f"{name} {value:.4g} is far above its median {median:.4g}" if value > limit else None
