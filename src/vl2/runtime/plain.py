"""The plain PyTorch runner: it calls the model's modules, on any device and in any dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from vl2.model import VL2, Cache, CacheRows
from vl2.model.int8_cache import AS_MODEL, CacheForm
from vl2.runtime.runner import CachePool, FreshRows, new_key


class PlainRunner:
    """Run the passes by calling the model. See `Runner` for the methods."""

    name: ClassVar[str] = "plain PyTorch"
    can_verify = False  # a product of another shape may round differently

    def __init__(self, model: VL2, cache: CacheForm = AS_MODEL) -> None:
        self.key = new_key()
        self.model, self.cache = model, cache

    @staticmethod
    def refusal_on(device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    @classmethod
    def refusal(cls, model: VL2) -> str | None:
        return None

    @property
    def notes(self) -> Sequence[str]:
        return ()

    def encode(self, tiles_I3PP: Tensor) -> Tensor:
        return self.model.encode_tiles(tiles_I3PP)

    def prefill(self, embeds_1SD: Tensor, row: Cache) -> Tensor:
        return self.model.language.extend(embeds_1SD, row, last_only=True)[0, -1]

    def logits(self, states: Tensor) -> Tensor:
        return self.model.language.logits(states)

    def decode(self, token_ids: Sequence[int], rows: Sequence[Cache], num_rows: int) -> Tensor:
        # Pad to `num_rows` rows with copies of the first: the shape of a product decides how it rounds.
        language, num_padding = self.model.language, num_rows - len(token_ids)
        ids = [*token_ids, *[token_ids[0]] * num_padding]
        ids_B1 = torch.tensor(ids, device=self.model.device).unsqueeze(1)
        states_B1D = language.extend(language.embed(ids_B1), CacheRows(rows, num_rows))
        return language.logits(states_B1D[:, -1])[: len(token_ids)]

    def cache_pool(self, num_rows: int, longest: int, total: int) -> CachePool:
        return FreshRows(self.model, num_rows, self.cache)
