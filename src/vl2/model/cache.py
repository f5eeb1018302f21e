"""The key-value cache. Each request has one preallocated row, which is filled from position 0.

Rows have no padding in common: each request is prefilled alone into its row, and rows of different lengths are decoded
together. Requests that run at the same time therefore cannot change one another's results.

Multi-head attention caches rotated keys and values, [B, H, L, C] each. Latent attention caches one tensor
[B, L, R + rope], the normed latent and the rotated shared key. Golden: cache_L_* in tests/golden/reference/model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.model.mask import AttentionMask

Tensors = tuple[Tensor, ...]
Attend = Callable[[Tensors, Tensors], Tensor]  # (queries, all cached keys and values of the rows) -> outputs


class Cache:
    """The cached tensors of all layers, with positions on the second to last axis, and the length of every row.

    A cache with one row can drop old positions (`make_room`). The row then holds fewer positions than were written, and
    not in order. Attention does not need the order, because keys carry their positions by rotation.
    """

    def __init__(self, layers: list[tuple[Tensor, ...]], lengths: list[int]) -> None:
        self.layers = layers
        self.lengths = lengths
        self.num_forgotten = 0  # positions dropped from the only row; always 0 with several rows

    @classmethod
    def allocate(
        cls, config: LanguageConfig, num_rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> Cache:
        """Allocate `num_rows` empty rows of `capacity` positions for every layer."""
        if config.use_mla:
            assert config.kv_lora_rank is not None
            shapes: list[tuple[int, ...]] = [(num_rows, capacity, config.kv_lora_rank + config.qk_rope_head_dim)]
        else:
            head_dim = config.hidden_size // config.num_attention_heads
            shapes = [(num_rows, config.num_kv_heads, capacity, head_dim)] * 2
        # Zeros instead of uninitialized memory: a masked position is still multiplied by weight 0, and 0 * NaN is NaN.
        layers = [
            tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)
            for _ in range(config.num_hidden_layers)
        ]
        return cls(layers, [0] * num_rows)

    @property
    def capacity(self) -> int:
        return self.layers[0][0].shape[-2]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer)

    @property
    def positions(self) -> list[int]:
        """The next position of every row, which is the number of positions written to it."""
        return [length + self.num_forgotten for length in self.lengths]

    def make_room(self, first: int, window: int) -> None:
        """Drop the oldest position at or after `first` if the row holds `window` of those, so that one more fits.

        Unlimited-OCR needs this: it attends to the prompt, which ends at `first`, and to the last tokens of its answer.
        The cache must have one row.
        """
        (length,) = self.lengths
        if length - first < window:
            return
        # Overwrite the oldest position with the newest, so that the next one can take the last place. All places from
        # `first` except the last form a ring of window - 1, in which num_forgotten counts the replacements.
        if window > 1:
            oldest, newest = first + self.num_forgotten % (window - 1), length - 1
            for stored in (t for layer in self.layers for t in layer):
                stored.narrow(-2, oldest, 1).copy_(stored.narrow(-2, newest, 1))
        self.lengths = [length - 1]
        self.num_forgotten += 1

    def cut(self, length: int) -> None:
        """Drop the positions from `length` on of the only row. None may have been dropped by `make_room`."""
        (held,) = self.lengths
        assert 0 <= length <= held, f"{length} of {held} positions"
        assert not self.num_forgotten, f"{self.num_forgotten} positions were dropped"
        self.lengths = [length]

    def clear(self) -> None:
        """Empty all rows, as after allocation."""
        # The tensors are zeroed too: a NaN or infinity left in them would reach later requests, since 0 * NaN is NaN.
        for layer in self.layers:
            for t in layer:
                t.zero_()
        self.lengths = [0] * len(self.lengths)
        self.num_forgotten = 0

    def rows(self, start: int, stop: int) -> Cache:
        """Return a cache of the rows from `start` up to `stop`. It shares their tensors and has lengths of its own."""
        return Cache([tuple(t[start:stop] for t in layer) for layer in self.layers], self.lengths[start:stop])

    def mask(self, num_new: int) -> AttentionMask:
        """Return which positions each of `num_new` queries may see after their own positions have been written."""
        return AttentionMask.of_cache(self.lengths, num_new, self.layers[0][0].device)

    def place(self, layer: int, num_new: int) -> Tensors:
        """Return the views into which `write` copies new positions. All rows must have the same length."""
        (start,) = set(self.lengths)
        assert start + num_new <= self.capacity, f"the cache holds {self.capacity} positions, not {start + num_new}"
        return tuple(stored.narrow(-2, start, num_new) for stored in self.layers[layer])

    def filled(self, layer: int, num_new: int) -> Tensors:
        """Return the views of a layer up to the last new position of the longest row."""
        return tuple(stored.narrow(-2, 0, max(self.lengths) + num_new) for stored in self.layers[layer])

    def write(self, layer: int, new: Tensors) -> Tensors:
        """Append new positions to every row of a layer and return what the layer then holds.

        Only `advance` changes the lengths, so that all layers of a pass write to the same positions.
        """
        num_new = new[0].shape[-2]
        end = max(self.lengths) + num_new
        assert end <= self.capacity, f"the cache holds {self.capacity} positions, {end} are needed"
        if len(set(self.lengths)) == 1:
            for place, fresh in zip(self.place(layer, num_new), new, strict=True):
                place.copy_(fresh)
        else:
            for stored, fresh in zip(self.layers[layer], new, strict=True):
                for row, length in enumerate(self.lengths):
                    stored[row].narrow(-2, length, num_new).copy_(fresh[row])
        return self.filled(layer, num_new)

    def attend(self, layer: int, queries: Tensors, new: Tensors, attend: Attend) -> Tensor:
        """Write the new positions, then attend to everything that the rows hold."""
        return attend(queries, self.write(layer, new))

    def advance(self, num_new: int) -> None:
        self.lengths = [length + num_new for length in self.lengths]


class CacheRows:
    """Rows of several caches that are decoded together, one position per pass. Each row attends only to itself.

    A matmul may round differently for another number of rows, so every pass has `num_rows` rows. The first row is
    repeated in place of missing rows; the repetitions write nothing and are left out of attention.
    """

    def __init__(self, caches: Sequence[Cache], num_rows: int) -> None:
        assert 1 <= len(caches) <= num_rows, f"{len(caches)} caches do not fit into {num_rows} rows"
        assert all(len(cache.lengths) == 1 for cache in caches), "each cache must have one row"
        self._caches = caches
        self.num_rows = num_rows

    @property
    def lengths(self) -> list[int]:
        lengths = [cache.lengths[0] for cache in self._caches]
        return lengths + lengths[:1] * (self.num_rows - len(lengths))

    @property
    def positions(self) -> list[int]:
        positions = [cache.positions[0] for cache in self._caches]
        return positions + positions[:1] * (self.num_rows - len(positions))

    def mask(self, num_new: int) -> AttentionMask:
        """Return the mask of one query per row, which sees all positions of its row."""
        assert num_new == 1, f"rows of several caches take one position at a time, not {num_new}"
        return AttentionMask(tensor=None, is_causal=False)

    def advance(self, num_new: int) -> None:
        for cache in self._caches:
            cache.advance(num_new)

    def attend(self, layer: int, queries: Tensors, new: Tensors, attend: Attend) -> Tensor:
        """Write the new position of every row, and attend in each row separately."""
        outputs = []
        for i, cache in enumerate(self._caches):
            held = cache.write(layer, tuple(t[i : i + 1] for t in new))
            outputs.append(attend(tuple(q[i : i + 1] for q in queries), held))
        return torch.cat(outputs + outputs[:1] * (self.num_rows - len(outputs)))


AnyCache = Cache | CacheRows


@dataclass(frozen=True)
class CacheLayer:
    """One layer of a cache, which the attention of that layer reads and writes."""

    cache: AnyCache
    index: int


def attend_cached(layer: CacheLayer | None, queries: Tensors, new: Tensors, attend: Attend) -> Tensor:
    """Attend to the new keys and values and, if there is a cache, to the earlier ones that it holds."""
    return attend(queries, new) if layer is None else layer.cache.attend(layer.index, queries, new, attend)
