"""Page experts: run a model whose routed experts do not all fit in memory, and evict the least recently used ones.

Weights that every token needs (attention, dense and shared layers, head, encoder) are read at the start and stay.
A routed expert is read when the router first chooses it. All experts that a layer needs in a pass are prefetched
together, so that the disk can serve the reads in parallel.

When the experts exceed the budget, the least recently used one is evicted: its pages are unmapped from this process.
The system keeps them in its page cache until other programs need the memory, so a returning expert costs either a
remapping or a disk read. The budget is that of this process, and nothing is written to disk.

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

WINDOW = 1 << 16  # bytes: on an access Linux also maps the cached pages around it, up to this size
EXPERTS = ".experts."  # substring of the names of routed experts' tensors


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """A contiguous range of bytes of a file."""

    file: MappedFile
    offset: int
    nbytes: int

    def surroundings(self) -> tuple[int, int]:
        """Return offset and size of the range, extended by what the system may have mapped around it."""
        first = self.offset // WINDOW * WINDOW
        stop = min(self.file.nbytes, -(-(self.offset + self.nbytes) // WINDOW) * WINDOW)
        return first, stop - first


Key = tuple[str, int]  # name of a MoE layer, index of an expert in it


class ExpertPager:
    """Loads the experts that the routers choose, and keeps the experts in memory within a budget of bytes."""

    def __init__(self, model: VL2, views: FileViews, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self.hits = 0  # chosen experts that were in memory, counted once per layer and pass
        self.misses = 0  # chosen experts that had to be loaded
        self._model = model
        self._byte_ranges = _byte_ranges(model, views)
        self._held: OrderedDict[Key, int] = OrderedDict()  # bytes of experts in memory, least recently used first
        self._lock = Lock()

    def attach(self) -> None:
        """Register a forward hook on every router, so that the experts it chooses are loaded before they run."""
        for name, module in self._model.named_modules():
            if isinstance(module, MoE):
                module.gate.register_forward_hook(partial(self._chosen, name))

    def use(self, layer: str, experts: Iterable[int]) -> None:
        """Load the given experts of a layer into memory, and evict others as far as the budget requires."""
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
        """Evict experts until `coming` more bytes fit the budget. The `keep` most recently used ones are in use."""
        while self.held_bytes + coming > self.budget_bytes and len(self._held) > keep:
            key, nbytes = self._held.popitem(last=False)
            self.held_bytes -= nbytes
            for part in self._byte_ranges[key]:
                # A neighboring expert that is in use may lose a few pages; the next access maps them again.
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
