"""The key-value cache: one preallocated row per request, every row filled from its own position 0.

Rows never share padding: a request is prefilled alone into its row, and rows of different length are
decoded together. So what runs beside a request cannot reach it. Multi-head attention caches rotated
keys and values [B, H, L, C]; latent attention only [B, L, R + rope]: the normed latent and the rotated
shared key. Golden: cache_L_* in tests/golden/reference/model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.model.mask import AttentionMask

Tensors = tuple[Tensor, ...]
Attend = Callable[[Tensors, Tensors], Tensor]  # of queries, and of all that the rows hold, to outputs


class Cache:
    """Tensors of all layers with their position axis second to last, and the length of every row.

    A row of a request may have forgotten positions (`make_room`): what it holds is then shorter than what was written,
    and not in order. Attention does not ask for the order: keys carry their positions by rotation.
    """

    def __init__(self, layers: list[tuple[Tensor, ...]], lengths: list[int]) -> None:
        self.layers = layers
        self.lengths = lengths
        self.num_forgotten = 0  # of the only row; of several none may

    @classmethod
    def allocate(
        cls, config: LanguageConfig, num_rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> Cache:
        """Reserve `num_rows` rows of `capacity` positions for every layer."""
        if config.use_mla:
            assert config.kv_lora_rank is not None
            shapes: list[tuple[int, ...]] = [(num_rows, capacity, config.kv_lora_rank + config.qk_rope_head_dim)]
        else:
            head_dim = config.hidden_size // config.num_attention_heads
            shapes = [(num_rows, config.num_kv_heads, capacity, head_dim)] * 2
        # Zeros, not uninitialized: a masked position still enters a product with weight 0, and 0 * NaN is NaN.
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
        """The position that comes next in every row: how many have been written."""
        return [length + self.num_forgotten for length in self.lengths]

    def make_room(self, first: int, window: int) -> None:
        """Forget the oldest position from `first` on, where `window` of them are held: one more may follow.

        For rows of Unlimited-OCR, which see the prompt and the last tokens of their answer.
        """
        (length,) = self.lengths
        if length - first < window:
            return
        # The newest moves to the place of the oldest, and what follows takes its place at the end.
        if window > 1:
            oldest, newest = first + self.num_forgotten % (window - 1), length - 1
            for stored in (t for layer in self.layers for t in layer):
                stored.narrow(-2, oldest, 1).copy_(stored.narrow(-2, newest, 1))
        self.lengths = [length - 1]
        self.num_forgotten += 1

    def clear(self) -> None:
        """Make all rows empty, as they were allocated."""
        # Not the lengths alone: a number that is not finite would reach, through weight 0, every row after it.
        for layer in self.layers:
            for t in layer:
                t.zero_()
        self.lengths = [0] * len(self.lengths)
        self.num_forgotten = 0

    def rows(self, start: int, stop: int) -> Cache:
        """Return a view of the rows start..stop. Their tensors are shared; its lengths are its own."""
        return Cache([tuple(t[start:stop] for t in layer) for layer in self.layers], self.lengths[start:stop])

    def mask(self, num_new: int) -> AttentionMask:
        """Return which positions each of `num_new` queries may see, when they have been written."""
        return AttentionMask.of_cache(self.lengths, num_new, self.layers[0][0].device)

    def place(self, layer: int, num_new: int) -> Tensors:
        """Return where `write` puts new positions of rows that are all of one length."""
        (start,) = set(self.lengths)
        assert start + num_new <= self.capacity, f"the cache holds {self.capacity} positions, not {start + num_new}"
        return tuple(stored.narrow(-2, start, num_new) for stored in self.layers[layer])

    def filled(self, layer: int, num_new: int) -> Tensors:
        """Return what a layer holds with the new positions, as wide as the longest row."""
        return tuple(stored.narrow(-2, 0, max(self.lengths) + num_new) for stored in self.layers[layer])

    def write(self, layer: int, new: Tensors) -> Tensors:
        """Append new positions to every row and return what the layer then holds.

        The lengths do not move until `advance`, so that all layers of a pass write at the same place.
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
        """Write new positions, and let the queries see all that their rows hold."""
        return attend(queries, self.write(layer, new))

    def advance(self, num_new: int) -> None:
        self.lengths = [length + num_new for length in self.lengths]


class CacheRows:
    """Rows of several caches that take one position in one pass, each attended by itself.

    A pass of always the same number of rows rounds always alike: rows that are missing repeat the first one, at no
    cost in attention, and write nothing.
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
        """Return the mask of one query a row, which sees all that its row holds."""
        assert num_new == 1, f"rows of several caches take one position at a time, not {num_new}"
        return AttentionMask(tensor=None, is_causal=False)

    def advance(self, num_new: int) -> None:
        for cache in self._caches:
            cache.advance(num_new)

    def attend(self, layer: int, queries: Tensors, new: Tensors, attend: Attend) -> Tensor:
        """Write the new position of every row, and let each query see its own row alone."""
        outputs = []
        for i, cache in enumerate(self._caches):
            held = cache.write(layer, tuple(t[i : i + 1] for t in new))
            outputs.append(attend(tuple(q[i : i + 1] for q in queries), held))
        return torch.cat(outputs + outputs[:1] * (self.num_rows - len(outputs)))


AnyCache = Cache | CacheRows


@dataclass(frozen=True)
class CacheLayer:
    """One layer of a cache: what its attention reads and writes."""

    cache: AnyCache
    index: int


def attend_cached(layer: CacheLayer | None, queries: Tensors, new: Tensors, attend: Attend) -> Tensor:
    """Let queries see the new keys and values, and those before them that a cache holds."""
    return attend(queries, new) if layer is None else layer.cache.attend(layer.index, queries, new, attend)
