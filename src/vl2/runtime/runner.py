"""The `Runner` protocol (encode, prefill, decode), and the `CachePool` protocol for the cache rows of its requests.

I tiles of side P, Q visual tokens of each, D model width, S positions of a prompt, B requests, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from vl2.errors import memory_errors
from vl2.model import VL2, Cache
from vl2.model.int8_cache import CacheForm, allocate_cache


class CachePool(Protocol):
    """A pool of rows of the key-value cache for the requests that are answered together."""

    num_rows: int  # the maximum number of rows in use at once

    def take(self, num_positions: int) -> Cache:
        """Return an empty cache of one row and `num_positions` positions. Raise UserError if memory is insufficient."""

    def give_back(self, row: Cache) -> None:
        """Free a row."""

    def prepare(self) -> None:
        """Do once, before any row is taken, what would delay the first answers of a server."""

    def close(self) -> None:
        """Free all rows."""


class Runner(Protocol):
    """Execute the three passes of one model in inference mode.

    A runner keeps references to the weights that the model had at the runner's creation. It sees values written into
    these tensors in place. After a weight has been replaced or moved, create another runner.
    """

    name: ClassVar[str]
    key: bytes  # unique to this runner: cached results of one runner are not used by another
    model: VL2  # computes what the runner has no faster way for; shares its weights with the original model
    cache: CacheForm  # the form of the rows in its pools

    @property
    def can_verify(self) -> bool:
        """Whether `decode` takes several tokens of one row, with the bits that decoding them one by one gives."""

    @staticmethod
    def refusal_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """Return in one sentence why this runner supports no model of a dtype on a device, or None if it may."""

    @classmethod
    def refusal(cls, model: VL2) -> str | None:
        """Return in one sentence why this runner does not support a model, or None if it does."""

    @property
    def notes(self) -> Sequence[str]:
        """The fast paths that the runner cannot use for this model, with the reason, one sentence each."""

    def encode(self, tiles_I3PP: Tensor) -> Tensor:
        """Return the visual tokens of each tile, [I, Q, D]."""

    def prefill(self, embeds_1SD: Tensor, row: Cache) -> Tensor:
        """Append embedded positions of a prompt to a row, and return the last one's state after the final norm, [D]."""

    def logits(self, states: Tensor) -> Tensor:
        """Return the float32 logits [..., V] of states [..., D]."""

    def decode(self, token_ids: Sequence[int], rows: Sequence[Cache], num_rows: int) -> Tensor:
        """Append one token to each row and return the float32 logits [B, V] of the next one.

        The next call may overwrite the logits. `rows` come from one pool. If the shape of a pass affects rounding, the
        pass is computed with `num_rows` rows, so that an answer does not depend on the other requests.

        With `can_verify`, a row may be given several times in succession: its tokens then follow one another.
        """

    def cache_pool(self, num_rows: int, longest: int, total: int) -> CachePool:
        """Return a pool of up to `num_rows` rows with at most `longest` positions each and `total` positions in all."""


_COUNT = count()


def new_key() -> bytes:
    """Return a key that no other runner of this process has."""
    return next(_COUNT).to_bytes(8, "little")


class FreshRows:
    """A pool that allocates each row when it is taken, with exactly the positions asked for."""

    def __init__(self, model: VL2, num_rows: int, form: CacheForm) -> None:
        self.num_rows, self._form = num_rows, form
        self._config, self._dtype, self._device = model.config.language_config, model.dtype, model.device

    def take(self, num_positions: int) -> Cache:
        with memory_errors(f"a cache of {num_positions} tokens"):
            return allocate_cache(self._form, self._config, 1, num_positions, dtype=self._dtype, device=self._device)

    def give_back(self, row: Cache) -> None:
        row.layers = []

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        pass
