"""A decoding step as a CUDA graph: hundreds of small kernels launched as one.

A graph does the same work on the same addresses each time it is replayed. So nothing moves in the step written here:
the tokens and the positions are tensors that are filled before, the new keys are scattered to their positions, and each
row looks at the whole cache through a mask. A graph is made for each number of rows when it first occurs.

The step itself runs anywhere, and a test holds it equal to the plain one; the graph around it needs a card, and has not
been measured by this project.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vl2.model import VL2, Cache
from vl2.model.attention import Reach
from vl2.model.moe import has_grouped_kernel
from vl2.quant.record import form_of

WARM_UPS = 3  # runs before the recording, in which libraries choose their kernels and take their memory


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

    def __init__(self, model: VL2, cache: Cache) -> None:
        num_rows = len(cache.lengths)
        self._model = model
        self.ids_B1 = torch.zeros(num_rows, 1, dtype=torch.int64, device=model.device)
        self.place_B = torch.zeros(num_rows, dtype=torch.int64, device=model.device)
        self._cache = _ScatteredCache(cache.layers, self.place_B)
        self._key_L = torch.arange(cache.capacity, device=model.device)

    def fill(self, token_ids: Sequence[int], lengths: Sequence[int]) -> None:
        """Say which tokens come next, and where."""
        self.ids_B1.copy_(torch.tensor(token_ids).unsqueeze(1))
        self.place_B.copy_(torch.tensor(lengths))

    def run(self) -> Tensor:
        """Return the float32 logits [B, V]. Running it again writes the same to the same places."""
        language = self._model.language
        visible_B11L = (self._key_L <= self.place_B[:, None])[:, None, None, :]
        reach = Reach(mask=visible_B11L, is_causal=False)
        hidden = language.model(language.embed(self.ids_B1), self.place_B[:, None], reach, self._cache)
        logits_BV: Tensor = language.logits(hidden.states_BSD[:, -1])
        return logits_BV


class DecodeGraphs:
    """Decodes the first rows of one cache, however many, each number by a graph of its own."""

    def __init__(self, model: VL2, cache: Cache) -> None:
        self._model, self._cache = model, cache
        self._recorded: dict[int, tuple[FixedStep, torch.cuda.CUDAGraph, Tensor]] = {}

    @staticmethod
    def applies(model: VL2) -> bool:
        """Whether a step of this model has no moment at which the host must know what the card has computed.

        The grouped product of the experts runs without one where there is a kernel for it, in bfloat16.
        """
        return (
            model.device.type == "cuda"
            and model.dtype == torch.bfloat16
            and has_grouped_kernel(torch.cuda.get_device_capability(model.device), torch.version.hip)
            and form_of(model) is None
        )

    def decode(self, token_ids: Sequence[int], rows: Cache) -> Tensor:
        """Append one token to every row and return the logits that follow, [B, V]; the next call overwrites them."""
        assert max(rows.lengths) < rows.capacity, f"the cache holds {rows.capacity} positions, all rows need one more"
        if len(token_ids) not in self._recorded:
            self._recorded[len(token_ids)] = self._record(token_ids, rows)
        step, graph, logits_BV = self._recorded[len(token_ids)]
        step.fill(token_ids, rows.lengths)
        with torch.cuda.device(self._model.device):
            graph.replay()
        rows.advance(1)
        return logits_BV

    def _record(self, token_ids: Sequence[int], rows: Cache) -> tuple[FixedStep, torch.cuda.CUDAGraph, Tensor]:
        step = FixedStep(self._model, rows)
        # With what comes next anyway: the runs before and during the recording then write what belongs there.
        step.fill(token_ids, rows.lengths)
        # Streams and recordings are those of the current card, which need not be the model's.
        with torch.cuda.device(self._model.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    step.run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits_BV = step.run()
        return step, graph, logits_BV
