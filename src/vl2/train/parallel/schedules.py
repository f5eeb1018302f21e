"""Run segments as a pipeline with PyTorch's schedules, one schedule for each shape of micro-batches.

PyTorch needs the shapes of all communicated tensors in advance, and all micro-batches of a step must have the same
shapes. So there is one pipeline per (tiles, tokens) over the same layers. A pipeline keeps receive buffers for all its
micro-batches, so only the pipelines used last are kept. Shapes are computed here: PyTorch's shape inference would run
an additional forward pass and count the expert load twice.

The zero-bubble schedule computes the gradients of inputs first, for which the rank before waits, and the gradients of
weights where the rank would wait itself. Layers that compute both in one function (norms, the head) run it twice.

Only this file uses `torch.distributed.pipelining`.
Source: arXiv 2401.10241 (zero bubble; PyTorch's engine has its schedule ZB1P).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vl2.train.parallel.pipeline_split import PipelineSplit
from vl2.train.parallel.segment import SegmentModel
from vl2.train.ranks import Ranks
from vl2.train.recipe import PipelineSchedule

if TYPE_CHECKING:
    from torch.distributed.pipelining.schedules import _PipelineSchedule
    from torch.distributed.pipelining.stage import _PipelineStageBase

_KEPT = 2  # cached pipelines; a step uses one for packs with images and one for text-only packs


@dataclass(frozen=True, kw_only=True)
class MicroBatchShape:
    """The properties that all micro-batches of a pass have in common."""

    num_batches: int
    num_tiles: int  # 0 for text-only batches that skip the encoder
    num_tokens: int
    is_trained: bool


class Pipelines:
    """The pipelines over one rank's segments."""

    def __init__(
        self,
        split: PipelineSplit,
        segments: dict[int, SegmentModel],
        stage: Ranks,
        dtype: torch.dtype,
        *,
        num_tensor: int = 1,
        kind: PipelineSchedule = "1f1b",
    ) -> None:
        """Keep this rank's segments, keyed by their number in the split. Activations are sent in `dtype`.

        `num_tensor` ranks with the same packs divide the tiles among themselves.
        """
        self._num_tensor, self._kind = num_tensor, kind
        self._split, self._segments, self._stage, self._dtype = split, segments, stage, dtype
        self._built: OrderedDict[MicroBatchShape, _PipelineSchedule] = OrderedDict()

    def run(self, shape: MicroBatchShape, carries_gradient: Sequence[bool]) -> None:
        """Run the micro-batches given to the segments, forward and backward. All ranks must call this together.

        `carries_gradient` says for every segment whether its output requires a gradient.
        """
        schedule = self._built.get(shape)
        if schedule is None:
            if len(self._built) == _KEPT:
                self._built.popitem(last=False)  # free its buffers before building the new one
            schedule = self._built[shape] = self._build(shape, carries_gradient)
        self._built.move_to_end(shape)
        numbers = torch.arange(shape.num_batches)
        run = schedule.step if shape.is_trained else schedule.eval
        # The schedule's outputs are ignored, because segments keep the losses themselves.
        run(number=numbers, target=numbers)

    def _build(self, shape: MicroBatchShape, carries_gradient: Sequence[bool]) -> _PipelineSchedule:
        # Imported here because it loads PyTorch's compiler, and most runs have no pipeline.
        from torch.distributed.pipelining import (
            PipelineStage,
            Schedule1F1B,
            ScheduleInterleaved1F1B,
            ScheduleInterleavedZeroBubble,
        )

        chosen = self._segment_numbers(shape)
        stages: list[_PipelineStageBase] = []
        for place, number in enumerate(chosen):
            if number in self._segments:
                before = self._output_specs(chosen[place - 1], shape, carries_gradient) if place else ()
                after = self._output_specs(number, shape, carries_gradient)
                stages.append(
                    PipelineStage(
                        self._segments[number],
                        place,
                        len(chosen),
                        self._stage.device,
                        input_args=before,
                        output_args=after,
                        group=self._stage.group,
                    )
                )
        # The engine finds no gradients of weights behind an input without one, so the first segment must be trained.
        if self._kind == "zero_bubble" and shape.is_trained and carries_gradient[chosen[0]]:
            return ScheduleInterleavedZeroBubble(stages, shape.num_batches, loss_fn=_squeeze_loss, scale_grads=False)
        if len(chosen) == self._split.num_ranks:
            return Schedule1F1B(stages[0], shape.num_batches, loss_fn=_squeeze_loss, scale_grads=False)
        return ScheduleInterleaved1F1B(stages, shape.num_batches, loss_fn=_squeeze_loss, scale_grads=False)

    def _segment_numbers(self, shape: MicroBatchShape) -> tuple[int, ...]:
        return tuple(range(len(self._split.segments))) if shape.num_tiles else self._split.text_segments

    def _output_specs(
        self, number: int, shape: MicroBatchShape, carries_gradient: Sequence[bool]
    ) -> tuple[Tensor, ...]:
        """Return a segment's outputs as tensors on the meta device."""
        config, last = next(iter(self._segments.values())).config, self._split.segments[number][-1].kind
        width, tiles = config.language_config.hidden_size, shape.num_tiles // self._num_tensor
        shapes: list[tuple[tuple[int, ...], torch.dtype]]
        if last == "block":
            vision = config.siglip
            shapes = [((tiles, vision.patches_per_side**2, vision.width), self._dtype)]
        elif last == "projector":
            shapes = [((tiles, config.tokens_per_side**2, config.projector_config.n_embed), self._dtype)]
        elif last == "head":
            shapes = [((1,), torch.float32)]
        else:
            shapes = [((1, shape.num_tokens, width), self._dtype), ((1,), torch.float32)]
        needs = carries_gradient[number] and shape.is_trained
        return tuple(torch.empty(size, dtype=dtype, device="meta", requires_grad=needs) for size, dtype in shapes)


def _squeeze_loss(loss: Tensor, _target: Tensor) -> Tensor:
    """Return the last segment's output, which is the loss, as the scalar that the schedule requires.

    It must not be a view, because the zero-bubble schedule detaches it in place.
    """
    return loss.sum()
