"""The KV cache for transformers' `generate`, a wrapper of `vl2.model.Cache`.

Transformers counts the columns of a left-padded batch. Our cache has no padding: each prompt is prefilled
alone into its row from position 0, then all rows are decoded together. So an answer does not depend on the
other rows of the batch. Shapes: B rows, S new columns.
"""

from __future__ import annotations

from typing import NoReturn

import torch
import transformers
from torch import Tensor

from vl2.config import LanguageConfig, ModelConfig
from vl2.errors import UserError
from vl2.model import Cache
from vl2.model.cache import CacheRows
from vl2.model.language import LanguageModel

FIRST_CAPACITY = 256  # positions allocated after a prompt; the capacity doubles when they are full


class VL2Cache(transformers.Cache):
    """A cache with rows of unequal length, which also counts transformers' padded columns."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__(layers=[])
        self.config = config
        self.rows: Cache | None = None  # allocated by the first `extend`, which knows the number of rows
        self.num_columns = 0  # padding included

    def extend(self, language: LanguageModel, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Append the positions where the mask is True to their rows. Return hidden states [B, S, D], 0 elsewhere."""
        rows = self._ensure_capacity(embeds_BSD)
        self.num_columns += embeds_BSD.shape[1]
        if embeds_BSD.shape[1] == 1 and bool(mask_BS.all()):
            return language.extend(embeds_BSD, rows)
        states_BSD = torch.zeros_like(embeds_BSD)
        for index, mask_S in enumerate(mask_BS):
            if mask_S.any():
                row = rows.rows(index, index + 1)
                states_BSD[index, mask_S] = language.extend(embeds_BSD[index, mask_S].unsqueeze(0), row)[0]
                rows.lengths[index] = row.lengths[0]
        return states_BSD

    @classmethod
    def of(cls, config: ModelConfig) -> VL2Cache:
        """Return an empty cache for a model, with a window over answers if the model has one."""
        if config.answer_window is not None:
            return VL2WindowCache(config.language_config, config.answer_window)
        return cls(config.language_config)

    def _ensure_capacity(self, embeds_BSD: Tensor) -> Cache:
        """Return the rows with room for S more positions. Copy them to a larger cache if necessary."""
        num_rows, num_new = embeds_BSD.shape[:2]
        old = self.rows
        if old is not None and len(old.lengths) != num_rows:
            raise UserError(f"the cache holds {len(old.lengths)} rows, {num_rows} were given")
        needed = num_new + (max(old.lengths) if old else 0)
        if old is None or needed > old.capacity:
            capacity = needed + max(FIRST_CAPACITY, old.capacity if old else 0)
            self.rows = Cache.allocate(
                self.config, num_rows, capacity, dtype=embeds_BSD.dtype, device=embeds_BSD.device
            )
            if old is not None:
                _copy_rows(old, self.rows)
        assert self.rows is not None
        return self.rows

    def _select(self, index: Tensor) -> None:
        if self.rows is not None:
            layers = [tuple(t.index_select(0, index.to(t.device)) for t in layer) for layer in self.rows.layers]
            self.rows = Cache(layers, [self.rows.lengths[i] for i in index.tolist()])

    # Methods and properties that transformers calls.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self.num_rows).repeat_interleave(repeats))

    @property
    def num_rows(self) -> int:
        return 0 if self.rows is None else len(self.rows.lengths)

    def reset(self) -> None:
        self.rows, self.num_columns = None, 0

    def crop(self, *_: int) -> NoReturn:
        raise UserError("the cache cannot be cropped, so assisted and prompt-lookup generation are not supported")

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_linear(self) -> list[bool]:
        return [False] * self.config.num_hidden_layers


class VL2WindowCache(VL2Cache):
    """A cache of fixed size for Unlimited-OCR: each row holds the first columns given and a window over later ones.

    The columns of the first `extend` are the prompt. All that come later count as the answer.
    """

    def __init__(self, config: LanguageConfig, window: int) -> None:
        super().__init__(config)
        self.window = window
        self._row_caches: list[Cache] = []
        self._prompt_lengths: list[int] = []

    def extend(self, language: LanguageModel, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        self.num_columns += embeds_BSD.shape[1]
        if not self._row_caches:
            return self._read_prompts(language, embeds_BSD, mask_BS)
        if len(self._row_caches) != len(embeds_BSD):
            raise UserError(f"the cache holds {len(self._row_caches)} rows, {len(embeds_BSD)} were given")
        states_BSD = torch.zeros_like(embeds_BSD)
        for column in range(embeds_BSD.shape[1]):
            rows = mask_BS[:, column].nonzero().flatten().tolist()
            if rows:
                caches = [self._row_caches[row] for row in rows]
                for row, cache in zip(rows, caches, strict=True):
                    cache.make_room(self._prompt_lengths[row], self.window)
                new = embeds_BSD[rows, column].unsqueeze(1)
                states_BSD[rows, column] = language.extend(new, CacheRows(caches, len(caches)))[:, 0]
        return states_BSD

    def _read_prompts(self, language: LanguageModel, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        states_BSD = torch.zeros_like(embeds_BSD)
        self._prompt_lengths = mask_BS.sum(1).tolist()
        for row, (length, mask_S) in enumerate(zip(self._prompt_lengths, mask_BS, strict=True)):
            cache = Cache.allocate(
                self.config, 1, length + self.window, dtype=embeds_BSD.dtype, device=embeds_BSD.device
            )
            if length:
                states_BSD[row, mask_S] = language.extend(embeds_BSD[row, mask_S].unsqueeze(0), cache)[0]
            self._row_caches.append(cache)
        return states_BSD

    def _select(self, index: Tensor) -> None:
        rows = index.tolist()
        self._row_caches = [_copy(self._row_caches[row]) for row in rows]
        self._prompt_lengths = [self._prompt_lengths[row] for row in rows]

    @property
    def num_rows(self) -> int:
        return len(self._row_caches)

    def reset(self) -> None:
        super().reset()
        self._row_caches, self._prompt_lengths = [], []


def _copy(cache: Cache) -> Cache:
    copied = Cache([tuple(t.clone() for t in layer) for layer in cache.layers], list(cache.lengths))
    copied.num_forgotten = cache.num_forgotten
    return copied


def _copy_rows(source: Cache, target: Cache) -> None:
    length = max(source.lengths)
    for old_layer, new_layer in zip(source.layers, target.layers, strict=True):
        for old, new in zip(old_layer, new_layer, strict=True):
            new.narrow(-2, 0, length).copy_(old.narrow(-2, 0, length))
    target.lengths = list(source.lengths)
