"""Graphs and their cache, kept from one call to the next on the same model, so that they are recorded once.

A model has one cache kept at most. A call takes it away and gives it back at its end, so that another which begins in
between gets a cache of its own. Where both come back, the larger is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from vl2.errors import memory_errors
from vl2.infer.decode_graph import DecodeGraphs, round_up
from vl2.infer.prefill import weights_key
from vl2.model import VL2, Cache

# With the weights by which they were recorded. Whose model goes, goes as well.
_KEPT: WeakKeyDictionary[VL2, tuple[bytes, DecodeGraphs]] = WeakKeyDictionary()


@contextmanager
def acquired_graphs(model: VL2, num_rows: int, capacity: int, *, max_capacity: int) -> Iterator[DecodeGraphs]:
    """Acquire graphs whose cache has at least so many empty rows of at least `capacity` positions.

    A new cache gets some more positions, for calls to come, but not more than `max_capacity`. What is kept but does not
    fit, or is of other weights, is freed first.
    """
    weights = weights_key(model)
    graphs = _taken(model, weights, num_rows, capacity)
    if graphs is None:
        graphs = DecodeGraphs(model, _allocated(model, num_rows, min(round_up(capacity), max_capacity)))
    try:
        yield graphs
    finally:
        kept = _KEPT.get(model)
        if kept is None or kept[1].cache.nbytes <= graphs.cache.nbytes:
            _KEPT[model] = weights, graphs


def drop_graphs(model: VL2) -> None:
    """Free what is kept for a model, which will do other things for a while."""
    _KEPT.pop(model, None)


def _taken(model: VL2, weights: bytes, num_rows: int, capacity: int) -> DecodeGraphs | None:
    known, graphs = _KEPT.pop(model, (b"", None))
    if graphs is None or known != weights:
        return None
    cache = graphs.cache
    if len(cache.lengths) < num_rows or cache.capacity < capacity:
        return None
    cache.clear()
    return graphs


def _allocated(model: VL2, num_rows: int, capacity: int) -> Cache:
    with memory_errors(f"a cache of {num_rows} rows of {capacity} tokens"):
        return Cache.allocate(model.config.language_config, num_rows, capacity, dtype=model.dtype, device=model.device)
