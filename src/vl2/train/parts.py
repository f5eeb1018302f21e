"""Assign parameters to the parts of the model, freeze parts, and form the optimizer's parameter groups.

The attention pool of DeepSeek-VL2's encoder and the patch embedding of DeepSeek-OCR's CLIP are in the released files
but are not used, so they are never trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, get_args

from torch import nn

from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.train.stage import Part, Stage, VisionPart

_PARTS: dict[str, Part] = {
    "vision": "vision",
    "projector": "projector",
    "image_newline": "projector",
    "view_separator": "projector",
    "language": "language",
}
# The parts of the DeepSeek-OCR family's encoder; a longer prefix comes before its own beginning.
_VISION_PARTS: dict[str, VisionPart] = {
    "vision.sam.net_": "convolutions",
    "vision.sam.": "sam",
    "vision.clip.": "clip",
    "vision.query_encoder.": "query_encoder",
}
_UNUSED = ("vision.attn_pool.", "vision.clip.embeddings.patch_embedding.")
# Tables of learned vectors, although they have the shape of a matrix.
_TABLES = (
    "pos_embed", "rel_pos_h", "rel_pos_w", "position_embedding.weight", "query_768.weight", "query_1024.weight",
)  # fmt: skip


NORM_PARTS = ("vision", "projector", "embedding", "attention", "mlp", "experts", "router", "norms", "head", "other")
"""The parts by which gradient norms are logged: "mlp" is that of dense layers and shared experts, "other" is what has
no name of this model's"""
_NORM_PARTS_OF_LANGUAGE = {  # the first that a name contains decides
    ".self_attn.": "attention",
    ".mlp.experts.": "experts",
    ".mlp.gate.": "router",
    ".mlp.": "mlp",
    "norm": "norms",
    "embed_tokens": "embedding",
    "lm_head": "head",
}


class HasConfig(Protocol):
    """A model, or the part of a model on one rank."""

    config: ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are updated by the same rule."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    rate_multiplier: float
    weight_decay: float
    is_orthogonal: bool = False  # Muon instead of AdamW


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon applies to a parameter: a matrix or a stack of matrices in a block, except routers."""
    is_in_block = ".blocks." in name or ".layers." in name
    return parameter.ndim > 1 and is_in_block and not name.endswith(("gate.weight", *_TABLES))


def part_of(name: str) -> Part:
    """Return the part of the model to which a parameter belongs, by its name."""
    return _PARTS[name.split(".")[0]]


def vision_part_of(name: str) -> VisionPart | None:
    """Return the part of the DeepSeek-OCR family's encoder to which a parameter belongs; None for all others."""
    return next((part for start, part in _VISION_PARTS.items() if name.startswith(start)), None)


def norm_part_of(name: str) -> str:
    """Return the one of NORM_PARTS to which a parameter belongs, by its name."""
    part = _PARTS.get(name.split(".")[0])
    if part is None:
        return "other"
    if part != "language":
        return part
    return next((kind for piece, kind in _NORM_PARTS_OF_LANGUAGE.items() if piece in name), "other")


def freeze(model: nn.Module, stage: Stage) -> None:
    """Freeze the parts that the stage freezes, in place. Parameters that are already frozen stay frozen.

    Raise UserError for a part of an encoder that the model does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in stage.frozen:
        if part in get_args(VisionPart) and not any(vision_part_of(name) == part for name in names):
            raise UserError(f"stage {stage.name}: this model has no {part} to freeze; it has vision")
    for name, parameter in model.named_parameters():
        if part_of(name) in stage.frozen or vision_part_of(name) in stage.frozen or name.startswith(_UNUSED):
            parameter.requires_grad_(False)


def check_trained(model: nn.Module, stage: Stage) -> None:
    """Raise UserError if no parameter is trainable."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"stage {stage.name}: nothing is left to train, because its adapter is in parts that are frozen "
            f"({', '.join(stage.frozen)}): change adapter.targets or stage.frozen"
        )


def still_parts(model: nn.Module) -> tuple[Part, ...]:
    """Return the parts without trainable parameters, because the stage freezes them or the adapter omits them."""
    moving = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return tuple(part for part in get_args(Part) if part not in moving)


def parameter_groups(model: nn.Module, stage: Stage) -> list[ParameterGroup]:
    """Return the trainable parameters in groups, in the model's order within a group. Only matrices decay."""
    found: dict[tuple[float, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decayed = parameter.ndim > 1 and not name.endswith(_TABLES)
            rule = (
                stage.rate_multiplier(part_of(name)),
                stage.weight_decay if is_decayed else 0.0,
                stage.optimizer == "muon" and is_block_matrix(name, parameter),
            )
            found.setdefault(rule, []).append((name, parameter))
    return [
        ParameterGroup(
            names=tuple(name for name, _ in members),
            parameters=tuple(parameter for _, parameter in members),
            rate_multiplier=multiplier,
            weight_decay=decay,
            is_orthogonal=is_orthogonal,
        )
        for (multiplier, decay, is_orthogonal), members in found.items()
    ]
