"""Running segments as a pipeline: PyTorch's schedules, one for each shape that a step may have.

PyTorch wants to know what travels before anything runs, and every micro-batch of a step must have the same shapes. So
there is a pipeline for each (tiles, tokens) that a run meets, around the same layers. Each keeps, from step to step,
room for what every one of its micro-batches receives, so only the last few stay. Shapes are given, not found by a first
pass, which would count the experts' load once more.

This is the only file that knows `torch.distributed.pipelining`.
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

if TYPE_CHECKING:
    from torch.distributed.pipelining import Schedule1F1B, ScheduleInterleaved1F1B
    from torch.distributed.pipelining.stage import _PipelineStageBase

_KEPT = 2  # pipelines of shapes met lately: a step has one for packs with images and one for text alone


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What all micro-batches of a step have in common."""

    num_batches: int
    num_tiles: int  # 0: text alone, which does not enter the encoder where the split lets it
    num_tokens: int
    is_trained: bool


class Pipelines:
    """The pipelines of one rank's segments."""

    def __init__(
        self, split: PipelineSplit, segments: dict[int, SegmentModel], stage: Ranks, dtype: torch.dtype
    ) -> None:
        """`segments` are this rank's, by their number in the split; activations travel in `dtype`."""
        self._split, self._segments, self._stage, self._dtype = split, segments, stage, dtype
        self._built: OrderedDict[Shape, Schedule1F1B | ScheduleInterleaved1F1B] = OrderedDict()

    def run(self, shape: Shape, carries_gradient: Sequence[bool]) -> None:
        """Run the micro-batches that the segments have been given, forward and backward. All ranks call it together.

        `carries_gradient` says of every segment whether what it sends on requires a gradient.
        """
        schedule = self._built.get(shape)
        if schedule is None:
            if len(self._built) == _KEPT:
                self._built.popitem(last=False)  # before the new one takes its room
            schedule = self._built[shape] = self._build(shape, carries_gradient)
        self._built.move_to_end(shape)
        numbers = torch.arange(shape.num_batches)
        run = schedule.step if shape.is_trained else schedule.eval
        # Segments keep what is of interest of their outputs.
        run(number=numbers, target=numbers)

    def _build(self, shape: Shape, carries_gradient: Sequence[bool]) -> Schedule1F1B | ScheduleInterleaved1F1B:
        # Here, not above: it brings PyTorch's compiler with it, and most runs have no pipeline.
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

        chosen = self._chosen(shape)
        stages: list[_PipelineStageBase] = []
        for place, number in enumerate(chosen):
            if number in self._segments:
                before = self._sent(chosen[place - 1], shape, carries_gradient) if place else ()
                after = self._sent(number, shape, carries_gradient)
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
        if len(chosen) == self._split.num_ranks:
            return Schedule1F1B(stages[0], shape.num_batches, loss_fn=_as_it_is, scale_grads=False)
        return ScheduleInterleaved1F1B(stages, shape.num_batches, loss_fn=_as_it_is, scale_grads=False)

    def _chosen(self, shape: Shape) -> tuple[int, ...]:
        return tuple(range(len(self._split.segments))) if shape.num_tiles else self._split.text_segments

    def _sent(self, number: int, shape: Shape, carries_gradient: Sequence[bool]) -> tuple[Tensor, ...]:
        """Return what a segment sends on, without its values."""
        config, last = next(iter(self._segments.values())).config, self._split.segments[number][-1].kind
        width = config.language_config.hidden_size
        shapes: list[tuple[tuple[int, ...], torch.dtype]]
        if last == "block":
            vision = config.siglip
            shapes = [((shape.num_tiles, vision.patches_per_side**2, vision.width), self._dtype)]
        elif last == "projector":
            shapes = [((shape.num_tiles, config.tokens_per_side**2, config.projector_config.n_embed), self._dtype)]
        elif last == "head":
            shapes = [((1,), torch.float32)]
        else:
            shapes = [((1, shape.num_tokens, width), self._dtype), ((1,), torch.float32)]
        needs = carries_gradient[number] and shape.is_trained
        return tuple(torch.empty(size, dtype=dtype, device="meta", requires_grad=needs) for size, dtype in shapes)


def _as_it_is(loss: Tensor, _target: Tensor) -> Tensor:
    """The last segment makes the loss itself; the schedule wants a number without axes."""
    return loss.squeeze()
