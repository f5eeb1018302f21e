"""The `Runner` protocol (encode, prefill, decode) and the `CachePool` that its requests take their rows from.

I tiles of side P, Q visual tokens of each, D model width, S positions of a prompt, B requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from vl2.errors import memory_errors
from vl2.model import VL2, Cache


class CachePool(Protocol):
    """Where the requests that are answered together get their rows of the key-value cache."""

    num_rows: int  # that may be taken at once

    def take(self, num_positions: int) -> Cache:
        """Return an empty cache of one row. UserError where there is no memory for it."""

    def give_back(self, row: Cache) -> None:
        """Free a row."""

    def close(self) -> None:
        """Free all rows."""


class Runner(Protocol):
    """Runs the three passes of one model, in inference mode.

    It knows the weights as they were when it was made. What is written into one of them it sees; after a weight has
    been replaced or moved, make another runner.
    """

    name: ClassVar[str]
    key: bytes  # no other runner has it: what one has computed is not another's
    model: VL2  # what computes whatever the runner has no faster way for; it shares its weights with the model given

    @staticmethod
    def refusal_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why this runner is for no model of a type on a device, in one sentence; None where it may be."""

    @classmethod
    def refusal(cls, model: VL2) -> str | None:
        """Return why this runner is not for a model, in one sentence; None where it is."""

    @property
    def notes(self) -> Sequence[str]:
        """Which of its faster ways the runner does not take with this model, and why, a sentence each."""

    def encode(self, tiles_I3PP: Tensor) -> Tensor:
        """Return the visual tokens of each tile, [I, Q, D]."""

    def prefill(self, embeds_1SD: Tensor, row: Cache) -> Tensor:
        """Append embedded positions of a prompt to a row, and return the state of the last after the norm, [D]."""

    def logits(self, states: Tensor) -> Tensor:
        """Return the float32 logits of states [..., D], [..., V]."""

    def decode(self, token_ids: Sequence[int], rows: Sequence[Cache], num_rows: int) -> Tensor:
        """Append one token to each row and return the float32 logits that follow, [B, V]; the next call may overwrite
        them.

        `rows` come from one pool. Computed as `num_rows` rows wherever the shape of a pass decides how it rounds: then
        what an answer is does not depend on what is decoded beside it.
        """

    def cache_pool(self, num_rows: int, longest: int, total: int) -> CachePool:
        """Return a pool of up to `num_rows` rows of at most `longest` positions, and `total` positions of all."""


_COUNT = count()


def new_key() -> bytes:
    """Return a key that no other runner of this process has."""
    return next(_COUNT).to_bytes(8, "little")


class FreshRows:
    """A pool that allocates each row as it is taken, no larger than it must be."""

    def __init__(self, model: VL2, num_rows: int) -> None:
        self.num_rows = num_rows
        self._config, self._dtype, self._device = model.config.language_config, model.dtype, model.device

    def take(self, num_positions: int) -> Cache:
        with memory_errors(f"a cache of {num_positions} tokens"):
            return Cache.allocate(self._config, 1, num_positions, dtype=self._dtype, device=self._device)

    def give_back(self, row: Cache) -> None:
        row.layers = []

    def close(self) -> None:
        pass
