"""Constrained decoding: which token ids may come next in one answer, and how that is told to the sampler.

A `Constraint` is a value in the options of a request; `start` makes the state of one answer. The sampler asks the
state for a mask before each draw and tells it the id after. Without a constraint nothing here runs.

V is the number of ids of the tokenizer; a model may have more logits, which are then never allowed.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vl2.process.tokenizer import Tokenizer

NEVER = float("-inf")


class ConstraintState(Protocol):
    """Where one answer stands. Not shared between answers or threads."""

    @property
    def num_to_finish(self) -> int:
        """Return how many more tokens are always enough to end properly; 0 where the answer may be cut here."""

    def allowed(self, num_left: int) -> Tensor:
        """Return bool [V], True for at least one id. `num_left` tokens may still come, this one included."""

    def advance(self, token_id: int) -> None:
        """Take the id that was chosen, one of those allowed. The end token is never passed."""


class Constraint(Protocol):
    """What every answer of a request must look like."""

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> ConstraintState:
        """Begin one answer. UserError if so many tokens can hold none."""


def keep_allowed(logits_V: Tensor, allowed_V: Tensor) -> Tensor:
    """Forbid every id that is not allowed, and the ids that the tokenizer does not have."""
    missing = len(logits_V) - len(allowed_V)
    if missing > 0:
        allowed_V = torch.cat([allowed_V, allowed_V.new_zeros(missing)])
    return logits_V.masked_fill(~allowed_V[: len(logits_V)].to(logits_V.device), NEVER)
