"""A decoding step as a CUDA graph: hundreds of small kernels launched as one.

A graph does the same work on the same addresses each time it is replayed. So nothing moves in the step written here:
the tokens and the positions are tensors that are filled before, the new keys are scattered to their positions, and each
row looks through a mask at as many of the cache's positions as the step was made for. A graph is made for each number
of rows and of such positions when it first occurs.

The step itself runs anywhere, and a test holds it equal to the plain one; the graph around it needs a card, and has not
been measured by this project. L positions that are looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vl2.model import VL2, Cache
from vl2.model.attention import AttentionMask
from vl2.model.language import LanguageModel
from vl2.model.moe import Experts, has_grouped_kernel, is_aligned
from vl2.quant.apply import quantization_of

LOGGER = logging.getLogger("vl2.infer.decode_graph")
WARM_UPS = 3  # runs before the recording, in which libraries choose their kernels and take their memory
LEAST_POSITIONS = 512
Replay = Callable[[], Tensor]


def round_up(positions: int) -> int:
    """Return the power of two that is made for so many positions, so that numbers near each other share one."""
    return max(LEAST_POSITIONS, 1 << (positions - 1).bit_length())


class _ScatteredCache(Cache):
    """A cache whose new positions are said by a tensor, and which is looked at as a whole."""

    def __init__(self, layers: list[tuple[Tensor, ...]], place_B: Tensor) -> None:
        super().__init__(layers, [0] * len(place_B))
        self._place_B = place_B

    def write(self, layer: int, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for stored, fresh in zip(self.layers[layer], new, strict=True):
            place = self._place_B.view(-1, *[1] * (fresh.dim() - 1)).expand_as(fresh)
            stored.scatter_(-2, place, fresh)
        return self.layers[layer]


class FixedStep:
    """One step of all rows of a cache: `ids_B1` and `place_B` in, logits out, with no shape or address that changes."""

    def __init__(self, language: LanguageModel, cache: Cache, num_positions: int) -> None:
        """Every row must keep within the first `num_positions` of the cache, the new token included."""
        num_rows, device = len(cache.lengths), cache.layers[0][0].device
        self._language = language
        self.ids_B1 = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self.place_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        layers = [tuple(t.narrow(-2, 0, num_positions) for t in layer) for layer in cache.layers]
        self._cache = _ScatteredCache(layers, self.place_B)
        self._key_L = torch.arange(num_positions, device=device)

    def fill(self, token_ids: Sequence[int], lengths: Sequence[int]) -> None:
        """Say which tokens come next, and where."""
        self.ids_B1.copy_(torch.tensor(token_ids).unsqueeze(1))
        self.place_B.copy_(torch.tensor(lengths))

    def run(self) -> Tensor:
        """Return the float32 logits [B, V]. Running it again writes the same to the same places."""
        visible_B11L = (self._key_L <= self.place_B[:, None])[:, None, None, :]
        mask = AttentionMask(tensor=visible_B11L, is_causal=False)
        embeds_B1D = self._language.embed(self.ids_B1)
        hidden = self._language.model(embeds_B1D, self.place_B[:, None], mask, self._cache)
        return self._language.logits(hidden.states_BSD[:, -1])


class Recorder:
    """Records steps of one cache as graphs, all in the same memory: they take turns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # A stream of this card for all recordings: PyTorch's own is one of the card that it first recorded on.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: FixedStep) -> Replay:
        """Return what runs a filled step as a graph. What it returns is overwritten by the next run of any of them.

        Where the recording fails it is the step itself, after a warning: slower, and as right.
        """
        try:
            return self._record(step)
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            LOGGER.warning("vl2: steps are launched kernel by kernel, as no CUDA graph could be recorded: %s", reason)
            return step.run

    def _record(self, step: FixedStep) -> Replay:
        # Streams and recordings are those of the current card, which need not be the model's.
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


class DecodeGraphs:
    """Decodes the first rows of one cache, however many."""

    def __init__(self, model: VL2, cache: Cache) -> None:
        self.cache = cache
        # Not the model itself: what is kept for a model must not keep it.
        self._language = model.language
        self._recorder = Recorder(model.device)
        self._recorded: dict[tuple[int, int], tuple[FixedStep, Replay]] = {}  # by rows and positions

    @staticmethod
    def applies(model: VL2) -> bool:
        """Whether a step of this model has no moment at which the host must know what the card has computed.

        The grouped product of the experts runs without one where there is a kernel for it, in bfloat16. Nor may
        somebody follow what a layer gives: a graph calls nobody.
        """
        return (
            model.device.type == "cuda"
            and model.dtype == torch.bfloat16
            and has_grouped_kernel(torch.cuda.get_device_capability(model.device), torch.version.hip)
            and quantization_of(model) is None
            and not any(module._forward_hooks for module in model.language.modules())
            and all(
                is_aligned(weight_EFD)
                for module in model.language.modules()
                if isinstance(module, Experts)
                for weight_EFD in module.parameters()
            )
        )

    def decode(self, token_ids: Sequence[int], rows: Cache) -> Tensor:
        """Append one token to every row and return the logits that follow, [B, V]; the next call overwrites them.

        `rows` are the first ones of the cache.
        """
        needed = max(rows.lengths) + 1
        assert needed <= rows.capacity, f"the cache holds {rows.capacity} positions, all rows need one more"
        shape = len(token_ids), min(round_up(needed), rows.capacity)
        if shape not in self._recorded:
            step = FixedStep(self._language, rows, shape[1])
            # With what comes next anyway: the runs before and during the recording then write what belongs there.
            step.fill(token_ids, rows.lengths)
            self._recorded[shape] = step, self._recorder.record(step)
        step, replay = self._recorded[shape]
        step.fill(token_ids, rows.lengths)
        logits_BV = replay()
        rows.advance(1)
        return logits_BV
