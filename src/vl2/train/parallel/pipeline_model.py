"""The segments of a pipeline that one rank holds, as one module with the weight names of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from vl2.model import VL2
from vl2.model.moe import MoE, Router
from vl2.train.parallel.pipeline_split import PipelineSplit, Unit
from vl2.train.parallel.rank_layout import Layout
from vl2.train.parallel.schedules import Pipelines
from vl2.train.parallel.segment import SegmentModel
from vl2.train.parts import part_of, still_parts
from vl2.train.recipe import PipelineSchedule
from vl2.train.shard import cast_held, copy_part_, gather_once, shard_module


class PipelineModel(nn.Module):
    """The segments on this rank. No rank holds the whole model, so it cannot be used for inference."""

    def __init__(
        self,
        model: VL2,
        split: PipelineSplit,
        layout: Layout,
        compute_dtype: torch.dtype,
        *,
        held: torch.dtype = torch.float32,
        schedule: PipelineSchedule = "1f1b",
    ) -> None:
        """Take this rank's layers out of a model and shard them. The first rank provides the weights.

        Call `freeze` first. All ranks must call this together; `model` must not be used afterwards. `held` is the type
        in which trained weights are held.
        """
        super().__init__()
        self.config, self.split, self.layout = model.config, split, layout
        source = {name: tensor.detach() for name, tensor in _tensors(model).items()} if layout.world.is_first else {}
        model.to("meta")
        cast_held(model, compute_dtype, held)
        specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(model).items()}
        self.still_parts = still_parts(model)
        trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.carries_gradient = _carries_gradient(split, trained, is_text=False)
        self.carries_text_gradient = _carries_gradient(split, trained, is_text=True)
        self.segments = {
            number: SegmentModel(model, split.segments[number], layout.data, layout.tensor)
            for number in split.of_rank(layout.stage.rank)
        }
        for number, segment in self.segments.items():
            shard_module(segment, layout, compute_dtype)
            segment.to_empty(device=layout.world.device)
            self.add_module(f"segment_{number}", segment)
        own = {name: tensor for segment in self.segments.values() for name, tensor in _tensors(segment).items()}
        with torch.no_grad():
            for name, (shape, dtype) in specs.items():
                full = torch.empty(shape, dtype=dtype, device=layout.world.device)
                if name in source:
                    full.copy_(source[name])
                layout.world.broadcast_(full)
                if name in own:
                    copy_part_(own[name], full)
            gather_once(self)
        self.pipelines = Pipelines(
            split, self.segments, layout.stage, compute_dtype, num_tensor=layout.tensor.size, kind=schedule
        )
        config = model.config.language_config
        self.moe_layers = [i for i in range(config.num_hidden_layers) if config.is_moe_layer(i)]

    def named_parameters(  # type: ignore[override]
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this rank's weights with their names in the whole model."""
        for segment in self.segments.values():
            yield from segment.named_parameters(prefix, recurse, remove_duplicate)

    def named_buffers(  # type: ignore[override]
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        for segment in self.segments.values():
            yield from segment.named_buffers(prefix, recurse, remove_duplicate)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: tensor for segment in self.segments.values() for name, tensor in segment.state_dict().items()}

    def held_routers(self) -> dict[int, Router]:
        """Return this rank's routers by their row in an expert load."""
        found: dict[int, Router] = {}
        for segment in self.segments.values():
            for index, layer in segment.layers():
                if isinstance(layer.mlp, MoE):
                    found[self.moe_layers.index(index)] = layer.mlp.gate
        return found


def _carries_gradient(split: PipelineSplit, trained: Set[str], *, is_text: bool) -> list[bool]:
    """Return for every segment whether its output depends on anything that is trained."""
    is_text = is_text and split.is_looped  # otherwise text passes through the encoder with a blank tile
    chosen = split.text_segments if is_text else range(len(split.segments))
    carries, so_far = [False] * len(split.segments), False
    for number in chosen:
        so_far = so_far or any(_is_trained(unit, trained, is_text) for unit in split.segments[number])
        carries[number] = so_far
    return carries


def _is_trained(unit: Unit, trained: Set[str], is_text: bool) -> bool:
    if unit.kind == "block":
        return "vision" in trained and not is_text
    if unit.kind == "projector":
        return bool(trained & {"vision", "projector"}) and not is_text
    if unit.kind == "join":
        return "language" in trained or ("projector" in trained and not is_text)
    return "language" in trained


def _tensors(model: nn.Module) -> Mapping[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
