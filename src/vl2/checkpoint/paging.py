"""Expert paging: run a model whose experts do not all fit in memory, evicting the least recently used.

The policy. What every token needs (attention, dense and shared layers, head, encoder) is read at the start and stays.
Routed experts are read when a token first visits them; all of a layer's experts that a pass needs are asked for at
once, so that the disk serves them together. When they exceed the budget, the one that was used longest ago is evicted:
taken out of this process, while the system keeps its pages as long as nobody else wants the memory. Coming back it
costs a remapping then, and a read of the disk otherwise. The budget holds for the process; nothing is written anywhere.

Answers do not depend on the budget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from torch import Tensor, nn

from vl2.checkpoint.in_place import FileViews
from vl2.checkpoint.names import places
from vl2.checkpoint.pages import MappedFile
from vl2.model import VL2
from vl2.model.moe import MoE

WINDOW = 1 << 16  # with a page that is touched, Linux maps those around it that are in its cache, up to so many bytes
EXPERTS = ".experts."  # in the names of tensors


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """A contiguous range of bytes of a file."""

    file: MappedFile
    offset: int
    nbytes: int

    def surroundings(self) -> tuple[int, int]:
        """Return offset and size with what the system brought in beside it."""
        first = self.offset // WINDOW * WINDOW
        stop = min(self.file.nbytes, -(-(self.offset + self.nbytes) // WINDOW) * WINDOW)
        return first, stop - first


Key = tuple[str, int]  # a MoE layer by name, an expert of it


class ExpertPager:
    """Watches the routers of a model whose experts lie in files, and keeps their bytes within a budget."""

    def __init__(self, model: VL2, views: FileViews, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self.hits = 0  # experts of a layer's pass that were in memory, and that were not
        self.misses = 0
        self._model = model
        self._byte_ranges = _byte_ranges(model, views)
        self._held: OrderedDict[Key, int] = OrderedDict()  # the least recently used first
        self._lock = Lock()

    def attach(self) -> None:
        """Follow what the model's routers choose from now on."""
        for name, module in self._model.named_modules():
            if isinstance(module, MoE):
                module.gate.register_forward_hook(partial(self._chosen, name))

    def use(self, layer: str, experts: Iterable[int]) -> None:
        """Have the experts of a layer in memory, having evicted others beyond the budget."""
        with self._lock:
            needed = [(layer, expert) for expert in experts]
            missing = [key for key in needed if key not in self._held]
            self.hits += len(needed) - len(missing)
            self.misses += len(missing)
            for key in needed:
                if key in self._held:
                    self._held.move_to_end(key)
            self._evict(coming=sum(map(self._nbytes, missing)), keep=len(needed) - len(missing))
            for key in missing:
                for part in self._byte_ranges[key]:
                    part.file.prefetch(part.offset, part.nbytes)
            for key in missing:
                for part in self._byte_ranges[key]:
                    part.file.read(part.offset, part.nbytes)
                self._held[key] = self._nbytes(key)
                self.held_bytes += self._held[key]

    def _nbytes(self, key: Key) -> int:
        return sum(part.nbytes for part in self._byte_ranges[key])

    def _evict(self, coming: int, keep: int) -> None:
        """Make room for bytes to come; the last `keep` experts are in use."""
        while self.held_bytes + coming > self.budget_bytes and len(self._held) > keep:
            key, nbytes = self._held.popitem(last=False)
            self.held_bytes -= nbytes
            for part in self._byte_ranges[key]:
                # An expert beside it that is in use loses a few pages, which come back when they are touched.
                part.file.evict(*part.surroundings())

    def _chosen(self, layer: str, gate: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        _, _, expert_TK = outputs
        self.use(layer, expert_TK.unique().tolist())


def _byte_ranges(model: VL2, views: FileViews) -> dict[Key, list[ByteRange]]:
    found: dict[Key, list[ByteRange]] = {}
    for place in places(model):
        layer, is_expert, _ = place.parameter.partition(EXPERTS)
        if not is_expert:
            continue
        stored = views.stored[place.name]
        num_experts = stored.shape[0]
        each = stored.nbytes // num_experts
        for expert in range(num_experts):
            byte_range = ByteRange(file=views.file(stored.path), offset=stored.offset + expert * each, nbytes=each)
            found.setdefault((layer, expert), []).append(byte_range)
    return found
