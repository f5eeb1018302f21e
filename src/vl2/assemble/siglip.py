"""Read SigLIP encoders from the hub: with the tensor names of transformers or timm, with or without a text tower.

DeepSeek-VL2 uses every block, the last norm and the position embeddings. The attention pool is copied because the
released files have it, but nothing reads it.

Sources: SiglipConfig and SiglipVisionModel in transformers, VisionTransformer in timm, model cards on the hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.assemble.stored_part import Origin
from vl2.checkpoint.folder import stored_tensors
from vl2.config import Json
from vl2.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

# The values that transformers uses for keys that are missing in a SigLIP's config.json.
TRANSFORMERS_DEFAULTS: Json = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}  # fmt: skip
SUPPORTED: dict[str, Any] = {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
# timm's config.json does not give the number of heads; it follows from the name of the architecture.
TIMM_HEADS = {"vit_base": 12, "vit_large": 16, "vit_so400m": 16}

TRANSFORMERS_DROPPABLE = {
    "text tower": r"text_model\..*",
    "logit scale and bias": r"logit_(scale|bias)",
    "position numbers": r"(vision_model\.)?embeddings\.position_ids",
}
# Our names without "vision." and those of transformers. Separate q, k and v projections are joined to our qkv, and the
# attention pool's joint in_proj is split into our q and kv.
TRANSFORMERS_NAMES = (
    (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"pos_embed$", "embeddings.position_embedding.weight"),
    (r"blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.{q,k,v}_proj."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"norm\.", "post_layernorm."),
    (r"attn_pool\.latent$", "head.probe"),
    (r"attn_pool\.(?:q|kv)\.", "head.attention.in_proj_"),
    (r"attn_pool\.proj\.", "head.attention.out_proj."),
    (r"attn_pool\.norm\.", "head.layernorm."),
    (r"attn_pool\.mlp\.", "head.mlp."),
)


@dataclass(frozen=True, kw_only=True)
class Siglip:
    """A SigLIP's folder, with its settings in our format."""

    folder: Path
    vision_config: Json  # in the format of our config.json
    is_timm: bool

    @classmethod
    def of(cls, folder: Path, values: Json) -> Siglip:
        """Parse the values of config.json. Raise UserError if DeepSeek-VL2 cannot use this encoder."""
        if is_timm(folder, values):
            return cls(folder=folder, vision_config=_from_timm(folder, values), is_timm=True)
        return cls(folder=folder, vision_config=_from_transformers(folder, values), is_timm=False)

    @property
    def droppable(self) -> dict[str, str]:
        """Regular expressions of the names of stored tensors that are not used, by kind."""
        return {} if self.is_timm else TRANSFORMERS_DROPPABLE

    def origins(self, ours: Shapes) -> dict[str, Origin]:
        """Return the origin of each of our tensors, whose names begin with "vision."."""
        if self.is_timm:
            return {name: Origin(names=(name.removeprefix("vision."),), shape=shape) for name, shape in ours.items()}
        # A SigLIP that was saved without its text tower has no prefix.
        has_prefix = any(name.startswith("vision_model.") for name in stored_tensors(self.folder))
        return {
            name: _origin(name.removeprefix("vision."), shape, "vision_model." if has_prefix else "")
            for name, shape in ours.items()
        }


def is_timm(folder: Path, values: Json) -> bool:
    """Return whether a SigLIP's tensors have timm's names and not those of transformers, judged by its config.json.

    Raise UserError if the model is not a SigLIP.
    """
    if values.get("model_type") in ("siglip", "siglip_vision_model"):
        return False
    if "siglip" in str(values.get("architecture")):
        return True
    kind = values.get("model_type") or values.get("architecture")
    raise UserError(
        f"{folder} is no SigLIP: config.json must have the model_type 'siglip', or of timm an architecture such as "
        f"'vit_so400m_patch14_siglip_384', got {kind!r}"
    )


def _from_transformers(folder: Path, values: Json) -> Json:
    given = values.get("vision_config", {}) if values["model_type"] == "siglip" else values
    vision = {**TRANSFORMERS_DEFAULTS, **{key: given[key] for key in TRANSFORMERS_DEFAULTS if key in given}}
    for key, only in SUPPORTED.items():
        if vision[key] != only:
            raise UserError(f"{key} of the SigLIP in {folder} must be {only!r}, got {vision[key]!r}")
    return _vision_config(
        image_size=_side(vision["image_size"], "image_size", folder),
        patch_size=_side(vision["patch_size"], "patch_size", folder),
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp_width=vision["intermediate_size"],
        has_pool=vision["vision_use_head"],
    )


def _from_timm(folder: Path, values: Json) -> Json:
    """Return our vision_config. Widths and depth come from the tensors, because timm's config.json lacks them."""
    architecture, arguments = str(values["architecture"]), values.get("model_args") or {}
    heads = arguments.get("num_heads", TIMM_HEADS.get("_".join(architecture.split("_")[:2])))
    if heads is None:
        raise UserError(f"{folder}: the number of heads of {architecture} is not known; {', '.join(TIMM_HEADS)} are")
    # timm computes the released model with "gelu", although it was trained with "gelu_tanh". The weights are the same,
    # so both names are accepted.
    if arguments.get("act_layer", "gelu_tanh") not in ("gelu_tanh", "gelu"):
        raise UserError(f"act_layer of the SigLIP in {folder} must be 'gelu_tanh', got {arguments['act_layer']!r}")
    size = arguments.get("img_size") or (values.get("pretrained_cfg") or {}).get("input_size", [None])[-1]
    stored = stored_tensors(folder)
    missing = [name for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight") if name not in stored]
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}: is this timm's {architecture}?")
    width, _, patch_size, _ = stored["patch_embed.proj.weight"].shape
    return _vision_config(
        image_size=_side(size, "pretrained_cfg.input_size", folder),
        patch_size=patch_size,
        width=width,
        layers=1 + max(int(found[1]) for name in stored if (found := re.match(r"blocks\.(\d+)\.", name))),
        heads=heads,
        mlp_width=stored["blocks.0.mlp.fc1.weight"].shape[0],
        has_pool=any(name.startswith("attn_pool.") for name in stored),
    )


def _vision_config(
    *, image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_width: int, has_pool: bool
) -> Json:
    # Our files store the ratio with four decimals, and the MLP's width is the integer part of width * ratio. The ratio
    # is rounded up, so that this gives the exact width.
    ratio = math.ceil(round(mlp_width / width * 1e4, 6)) / 1e4
    assert int(width * ratio) == mlp_width, (width, mlp_width)
    return {
        "model_type": "vision",
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "layers": layers,
        "heads": heads,
        "mlp_ratio": ratio,
        "global_pool": "map" if has_pool else "",
    }


def _side(value: Any, name: str, folder: Path) -> int:
    """Return the side of a square that is given as one number or as two equal ones. Raise UserError otherwise."""
    sides = value if isinstance(value, list | tuple) else [value]
    if not sides or len({*sides}) != 1 or not isinstance(sides[0], int):
        raise UserError(f"{name} of the SigLIP in {folder} must be one whole number, got {value!r}")
    return sides[0]


def _origin(ours: str, shape: tuple[int, ...], prefix: str) -> Origin:
    """Return the origin, under transformers' names, of our tensor, whose name is given without "vision."."""
    pattern, theirs = next((p, t) for p, t in TRANSFORMERS_NAMES if re.match(p, ours))
    name = prefix + re.sub(f"^{pattern}", theirs, ours)
    if ours == "pos_embed":
        return Origin(names=(name,), shape=shape[1:])
    if "{q,k,v}" in name:
        names = tuple(name.replace("{q,k,v}", each) for each in "qkv")
        return Origin(names=names, shape=(shape[0] // 3, *shape[1:]))
    if "in_proj_" in name:
        width = shape[0] if ".q." in ours else shape[0] // 2
        rows = (0, width) if ".q." in ours else (width, 3 * width)
        return Origin(names=(name,), shape=(3 * width, *shape[1:]), rows=rows)
    return Origin(names=(name,), shape=shape)
