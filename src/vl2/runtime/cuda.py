"""Decoding with CUDA graphs: the hundreds of small kernels of a decoding step are launched as one graph.

Each replay of a graph does the same work on the same addresses. The decoding step here therefore has fixed shapes and
addresses: token ids and positions are tensors that are filled before the replay, new keys are scattered to their
positions, and every row attends through a mask to a fixed number L of cache positions. The number of rows and L are
rounded up to powers of two. A graph is recorded when a combination of both first occurs, or before the first request of
a server, and is kept with its cache.

The step itself runs on any device, and a test compares it with the plain step. The graph around it needs a GPU; its
speed has not been measured by this project.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from vl2.errors import memory_errors
from vl2.model import VL2, Cache
from vl2.model.int8_cache import AS_MODEL, CacheForm
from vl2.model.language import LanguageModel
from vl2.model.mask import AttentionMask
from vl2.model.moe import Experts, MoE, has_grouped_mm, is_aligned
from vl2.quant.modules import QuantizedExperts
from vl2.quant.quantize_model import quantization_of
from vl2.runtime import gpu_kernels
from vl2.runtime.gpu_modules import with_gpu_kernels
from vl2.runtime.plain import PlainRunner
from vl2.runtime.runner import CachePool, new_key

LOGGER = logging.getLogger("vl2.runtime.cuda")
WARM_UPS = 3  # runs before the recording, in which libraries choose kernels and allocate workspaces
LEAST_POSITIONS = 512  # the smallest L
Replay = Callable[[], Tensor]


def round_up(positions: int) -> int:
    """Return the least power of two that holds so many positions, at least LEAST_POSITIONS, to record few graphs."""
    return max(LEAST_POSITIONS, 1 << (positions - 1).bit_length())


def row_counts(num_rows: int) -> list[int]:
    """Return the numbers of rows for which there are graphs: the powers of two below `num_rows`, and `num_rows`."""
    return [1 << exponent for exponent in range((num_rows - 1).bit_length())] + [num_rows]


def position_counts(capacity: int) -> list[int]:
    """Return the numbers of positions for which there are graphs in a cache of this capacity."""
    counts = list[int]()
    while not counts or counts[-1] < capacity:
        counts.append(min(round_up(counts[-1] + 1 if counts else 1), capacity))
    return counts


class _ScatteredCache(Cache):
    """A cache that writes to the positions in a tensor, `place_B`, and returns all its positions for attention."""

    def __init__(self, layers: list[tuple[Tensor, ...]], place_B: Tensor) -> None:
        super().__init__(layers, [0] * len(place_B))
        self._place_B = place_B

    def write(self, layer: int, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for stored, fresh in zip(self.layers[layer], new, strict=True):
            place = self._place_B.view(-1, *[1] * (fresh.dim() - 1)).expand_as(fresh)
            stored.scatter_(-2, place, fresh)
        return self.layers[layer]


class FixedStep:
    """A decoding step of all rows of a cache with fixed shapes and addresses: `fill` its inputs, then `run` it."""

    def __init__(self, language: LanguageModel, cache: Cache, num_positions: int) -> None:
        """Attend to the first `num_positions` of the cache. Every row must fit into them with its new token."""
        num_rows, device = len(cache.lengths), cache.layers[0][0].device
        self._language = language
        self.ids_B1 = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self.place_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.position_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        layers = [tuple(t.narrow(-2, 0, num_positions) for t in layer) for layer in cache.layers]
        self._cache = _ScatteredCache(layers, self.place_B)
        self._key_L = torch.arange(num_positions, device=device)

    def fill(self, token_ids: Sequence[int], lengths: Sequence[int], positions: Sequence[int]) -> None:
        """Set for every row the next token, its index in the cache (the row's length), and its rotary position."""
        self.ids_B1.copy_(torch.tensor(token_ids).unsqueeze(1))
        self.place_B.copy_(torch.tensor(lengths))
        self.position_B.copy_(torch.tensor(positions))

    def run(self) -> Tensor:
        """Return the float32 logits [B, V]. Running again with the same inputs writes the same values."""
        visible_B11L = (self._key_L <= self.place_B[:, None])[:, None, None, :]
        mask = AttentionMask(tensor=visible_B11L, is_causal=False)
        embeds_B1D = self._language.embed(self.ids_B1)
        hidden = self._language.model(embeds_B1D, self.position_B[:, None], mask, self._cache, equal_blocks=True)
        return self._language.logits(hidden.states_BSD[:, -1])


class Recorder:
    """Record the steps of one cache as graphs. All share one memory pool, because only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One stream of this GPU for all recordings: PyTorch's default one belongs to the GPU of its first recording.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: FixedStep) -> Replay:
        """Return a function that runs a filled step as a graph and returns its logits.

        The next run of any graph of this recorder overwrites the logits. If the recording fails, log a warning and
        return the step's own `run`, which is slower but gives the same results.
        """
        try:
            return self._record(step)
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            LOGGER.warning("vl2: steps are launched kernel by kernel, as no CUDA graph could be recorded: %s", reason)
            return step.run

    def _record(self, step: FixedStep) -> Replay:
        # Streams and recordings belong to the current GPU, which need not be the model's.
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    step.run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                logits_BV = step.run()

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return logits_BV

        return replay


class GraphPool:
    """A pool of the rows of one cache, with the graphs that decode them.

    A step runs at least all rows up to the last one in use. A row that is not decoded in this step writes to the
    position after its last one; the next token of that row overwrites it.
    """

    def __init__(self, runner: CudaGraphRunner, cache: Cache) -> None:
        self.cache, self.num_rows = cache, len(cache.lengths)
        self._runner = weakref.ref(runner)  # the runner refers to the pool: a cycle would delay freeing the memory
        self._language = runner.model.language
        self._taken: dict[int, Cache] = {}  # by row number
        self._recorder = Recorder(runner.model.device)
        self._recorded: dict[tuple[int, int], tuple[FixedStep, Replay]] = {}  # by rows and positions

    def take(self, num_positions: int) -> Cache:
        assert num_positions <= self.cache.capacity, f"rows of {self.cache.capacity} positions, not {num_positions}"
        number = next(number for number in range(self.num_rows) if number not in self._taken)
        row = self.cache.rows(number, number + 1)
        row.lengths = [0]
        self._taken[number] = row
        return row

    def give_back(self, row: Cache) -> None:
        del self._taken[self._number(row)]

    def close(self) -> None:
        """Give back all rows, and keep the cache and the graphs for the runner's next pool."""
        self._taken.clear()
        if (runner := self._runner()) is not None:
            runner.keep(self)

    def clear(self) -> None:
        self.cache.clear()

    def prepare(self) -> None:
        """Record the graphs of all numbers of rows and positions, while no row is in use."""
        assert not self._taken, f"{len(self._taken)} rows are in use"
        # The largest graph first: the smaller ones then find their memory in the pool.
        for num_rows in reversed(row_counts(self.num_rows)):
            for num_positions in reversed(position_counts(self.cache.capacity)):
                unused = [0] * num_rows  # writes to the first position, which a prompt overwrites
                self._step(unused, unused, unused, num_positions)

    def decode(self, token_ids: Sequence[int], rows: Sequence[Cache]) -> Tensor:
        """Append one token to each of B rows and return the float32 logits [B, V] of the next one."""
        needed = 1 + max(row.lengths[0] for row in self._taken.values())
        assert needed <= self.cache.capacity, f"rows of {self.cache.capacity} positions, {needed} are needed"
        num_rows = next(count for count in row_counts(self.num_rows) if count > max(self._taken))
        numbers = [self._number(row) for row in rows]
        next_ids, lengths, positions = [0] * num_rows, [0] * num_rows, [0] * num_rows
        for number, row in self._taken.items():
            lengths[number], positions[number] = row.lengths[0], row.positions[0]
        for number, token_id in zip(numbers, token_ids, strict=True):
            next_ids[number] = token_id
        step, replay = self._step(next_ids, lengths, positions, min(round_up(needed), self.cache.capacity))
        step.fill(next_ids, lengths, positions)
        logits_BV = replay()
        for row in rows:
            row.advance(1)
        return logits_BV[numbers]

    def _step(
        self, token_ids: Sequence[int], lengths: Sequence[int], positions: Sequence[int], num_positions: int
    ) -> tuple[FixedStep, Replay]:
        shape = len(token_ids), num_positions
        if shape not in self._recorded:
            step = FixedStep(self._language, self.cache.rows(0, shape[0]), num_positions)
            # Fill in the real inputs first, so that the warm-up runs write the correct keys and values to the cache.
            step.fill(token_ids, lengths, positions)
            self._recorded[shape] = step, self._recorder.record(step)
        return self._recorded[shape]

    def has(self, row: Cache) -> bool:
        return any(taken is row for taken in self._taken.values())

    def _number(self, row: Cache) -> int:
        return next(number for number, taken in self._taken.items() if taken is row)


class CudaGraphRunner:
    """Decode with CUDA graphs. Other passes run as they are: their kernels are large, so launches cost little.

    All passes use the Triton kernels where these can be used. Quantized weights need them: plain PyTorch would wait for
    the number of rows of each expert.
    """

    name: ClassVar[str] = "CUDA graphs"
    can_verify = False  # the recorded graphs take one token of each row

    def __init__(self, model: VL2, cache: CacheForm = AS_MODEL) -> None:
        assert cache == AS_MODEL, f"graphs have rows in the model's type, not in {cache}"
        self.key = new_key()
        self.cache = cache
        self.model = with_gpu_kernels(model) if gpu_kernels.refusal(model.device) is None else model
        self._plain = PlainRunner(self.model)
        self._kept: GraphPool | None = None  # a closed pool for reuse
        self._in_use: list[GraphPool] = []

    @staticmethod
    def refusal_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """Return in one sentence why no step can be recorded, or None: a graph must not wait for results of the GPU."""
        if device.type != "cuda":
            return f"the model is on {device}"
        if dtype != torch.bfloat16:
            return f"PyTorch's grouped product takes bfloat16, and the model is in {str(dtype).removeprefix('torch.')}"
        if has_grouped_mm(torch.cuda.get_device_capability(device), torch.version.hip):
            return None
        if (missing := gpu_kernels.refusal(device)) is not None:
            return (
                "PyTorch has no grouped product for this card, and would wait for the number of rows of each expert; "
                f"{missing}"
            )
        return None

    @classmethod
    def refusal(cls, model: VL2) -> str | None:
        if (reason := cls.refusal_on(model.device, model.dtype)) is not None:
            return reason
        modules = list(model.language.modules())
        if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
            return "a module has a hook, and a graph calls nobody"
        stacks = (module.experts for module in modules if isinstance(module, MoE))
        if (other := next((e for e in stacks if not isinstance(e, Experts | QuantizedExperts)), None)) is not None:
            return f"its experts are {type(other).__name__}, which may wait, and a graph waits for nothing"
        missing = gpu_kernels.refusal(model.device)
        if missing is None:
            return None
        if quantization_of(model) is not None:
            return f"its weights are quantized; {missing}"
        experts = (module for module in modules if isinstance(module, Experts))
        if not all(is_aligned(weight_EFD) for module in experts for weight_EFD in module.parameters()):
            return f"the sides of an expert are no multiples of 16 bytes; {missing}"
        return None

    @property
    def notes(self) -> Sequence[str]:
        return ()

    def encode(self, tiles_I3PP: Tensor) -> Tensor:
        return self._plain.encode(tiles_I3PP)

    def prefill(self, embeds_1SD: Tensor, row: Cache) -> Tensor:
        return self._plain.prefill(embeds_1SD, row)

    def logits(self, states: Tensor) -> Tensor:
        return self._plain.logits(states)

    def decode(self, token_ids: Sequence[int], rows: Sequence[Cache], num_rows: int) -> Tensor:
        pool = next(pool for pool in self._in_use if pool.has(rows[0]))
        return pool.decode(token_ids, rows)

    def cache_pool(self, num_rows: int, longest: int, total: int) -> CachePool:
        """Return the kept pool if it is large enough, otherwise a new one.

        A new pool gets more positions than needed where `total` allows it, so that later calls can reuse it. A kept
        pool that is too small is freed first.
        """
        num_rows = max(1, min(num_rows, total // longest))
        kept, self._kept = self._kept, None
        if kept is not None and kept.num_rows >= num_rows and kept.cache.capacity >= longest:
            kept.clear()
            pool = kept
        else:
            del kept
            pool = GraphPool(self, self._allocated(num_rows, longest, total))
        self._in_use.append(pool)
        return pool

    def keep(self, pool: GraphPool) -> None:
        """Keep a closed pool for reuse. Of two kept pools only the larger one remains."""
        self._in_use.remove(pool)
        if self._kept is None or self._kept.cache.nbytes <= pool.cache.nbytes:
            self._kept = pool

    def _allocated(self, num_rows: int, longest: int, total: int) -> Cache:
        capacity = max(longest, min(round_up(longest), total // num_rows))
        config, dtype, device = self.model.config.language_config, self.model.dtype, self.model.device
        with memory_errors(f"a cache of {num_rows} rows of {capacity} tokens"):
            return Cache.allocate(config, num_rows, capacity, dtype=dtype, device=device)
