"""The configuration of DeepEncoder, the image encoder of the DeepSeek-OCR family, which has two halves.

The first half is SAM's ViT with two convolutions. The second is CLIP's ViT in DeepSeek-OCR and Unlimited-OCR, and a
Qwen2 decoder with learned queries in DeepSeek-OCR-2.

Field names are the keys of `vision_config.width` in config.json, where each half has a section under a name of its own
("sam_vit_b"; "clip-l-14-224" or "qwen2-0-5b"). The released files leave out some keys whose values are fixed in the
released code. `_SAM`, `_CLIP` and `_QUERIES` have these values as defaults, and a model with other values writes them
out.

Source: released `deepencoder/sam_vary_sdpa.py` and `clip_sdpa.py`, `deepencoderv2/qwen2_d2e.py`. Golden:
tests/golden/ocr.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vl2.errors import UserError

SAM_NAME, CLIP_NAME, QUERIES_NAME = "sam_vit_b", "clip-l-14-224", "qwen2-0-5b"
# Sides in pixels of the views that DeepSeek-OCR-2 has queries for, one for each token of SAM's map.
QUERY_VIEWS_PX = (768, 1024)

# The values of the released code for keys that config.json leaves out.
_SAM: dict[str, Any] = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "global_attn_indexes": (2, 5, 8, 11),
    "downsample_channels": (512, 1024),
    "patch_size": 16,
    "window_size": 14,
    "neck_channels": 256,
    "mlp_ratio": 4,
    "image_size": 1024,
}
_CLIP: dict[str, Any] = {"width": 1024, "layers": 24, "heads": 16, "image_size": 224, "patch_size": 14, "mlp_ratio": 4}
# The released section has `dim` alone.
_QUERIES: dict[str, Any] = {
    "dim": 896,
    "layers": 24,
    "heads": 14,
    "kv_heads": 2,
    "intermediate_size": 4864,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
}


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """SAM's vision transformer with its neck, followed by two convolutions of stride 2."""

    width: int
    layers: int
    heads: int
    global_attn_indexes: tuple[int, ...]  # layers whose attention sees the whole view; the other layers see a window
    downsample_channels: tuple[int, int]  # output channels of the two convolutions
    patch_size: int
    window_size: int  # patches along one side of a window
    neck_channels: int
    mlp_ratio: int
    image_size: int  # side in pixels of the view that the positions were learned for; for others they are interpolated

    def __post_init__(self) -> None:
        _require_whole(self, "width", "layers", "heads", "patch_size", "window_size", "neck_channels", "mlp_ratio")
        _require_divided("sam width", self.width, "heads", self.heads)
        _require_divided("image_size", self.image_size, "patch_size", self.patch_size)
        if len(self.downsample_channels) != 2:
            raise UserError(f"downsample_channels must be two numbers, got {list(self.downsample_channels)}")
        if any(not 0 <= index < self.layers for index in self.global_attn_indexes):
            raise UserError(f"global_attn_indexes must be below {self.layers}, got {list(self.global_attn_indexes)}")

    @property
    def positions_per_side(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """CLIP's vision transformer. SAM's map takes the place of its patch embedding, which is still in the files."""

    width: int
    layers: int
    heads: int
    image_size: int  # image_size / patch_size is the side of the grid of learned positions
    patch_size: int
    mlp_ratio: int

    def __post_init__(self) -> None:
        _require_whole(self, "width", "layers", "heads", "image_size", "patch_size", "mlp_ratio")
        _require_divided("clip width", self.width, "heads", self.heads)

    @property
    def positions_per_side(self) -> int:
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class QueryEncoderConfig:
    """A Qwen2 decoder that reads SAM's map, then as many learned queries. Its output at the queries is the feature."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float

    def __post_init__(self) -> None:
        _require_whole(self, "dim", "layers", "heads", "kv_heads", "intermediate_size")
        _require_divided("dim", self.dim, "twice the heads", 2 * self.heads)  # rotary pairs
        _require_divided("heads", self.heads, "kv_heads", self.kv_heads)
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise UserError(f"{name} must be a positive number, got {value!r}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, kw_only=True)
class DeepEncoderConfig:
    """Both halves. With CLIP they can encode a view of any size that is a multiple of `pixels_per_token`.

    With queries they can encode views of QUERY_VIEWS_PX.
    """

    sam: SamConfig
    second: ClipConfig | QueryEncoderConfig

    def __post_init__(self) -> None:
        if isinstance(self.second, QueryEncoderConfig):
            name, width = "dim of the queries", self.second.dim
        else:
            name, width = "clip width", self.second.width
        if self.sam.downsample_channels[-1] != width:
            raise UserError(
                f"the last of downsample_channels must be the {name} ({width}), got {self.sam.downsample_channels[-1]}"
            )

    @property
    def image_size(self) -> int:
        """The side in pixels of the view that the positions were learned for."""
        return self.sam.image_size

    @property
    def width(self) -> int:
        """Channels of a feature: CLIP's and SAM's together, or the decoder's."""
        if isinstance(self.second, QueryEncoderConfig):
            return self.second.dim
        return self.second.width + self.sam.downsample_channels[-1]

    @property
    def pixels_per_token(self) -> int:
        return self.sam.patch_size * 4

    def num_patches(self, view_px: int) -> int:
        """Count the patches that SAM reads of a view."""
        return (view_px // self.sam.patch_size) ** 2

    def tokens_per_side(self, view_px: int) -> int:
        """Count the visual tokens along one side of a view."""
        return -(-(view_px // self.sam.patch_size) // 4)

    @classmethod
    def from_section(cls, vision: Mapping[str, Any], *, has_queries: bool = False) -> DeepEncoderConfig:
        """Read a `vision_config`. Raise UserError for values that do not fit together or have the wrong type.

        `has_queries` says that the second half is a decoder with queries instead of CLIP.
        """
        sections = vision.get("width")
        sections = sections if isinstance(sections, Mapping) else {}
        sam = {**_SAM, "image_size": vision.get("image_size", _SAM["image_size"]), **_named(sections, "sam")}
        second: ClipConfig | QueryEncoderConfig
        if has_queries:
            second = QueryEncoderConfig(**_only({**_QUERIES, **_named(sections, "qwen2")}, _QUERIES))
        else:
            second = ClipConfig(**_only({**_CLIP, **_named(sections, "clip")}, _CLIP))
        try:
            sam["global_attn_indexes"] = tuple(int(index) for index in sam["global_attn_indexes"])
            sam["downsample_channels"] = tuple(int(channels) for channels in sam["downsample_channels"])
        except (TypeError, ValueError):
            raise UserError("global_attn_indexes and downsample_channels must be lists of whole numbers") from None
        if isinstance(second, QueryEncoderConfig):
            # The released code takes the decoder's width here, whatever the file says.
            sam["downsample_channels"] = (*sam["downsample_channels"][:-1], second.dim)
        return cls(sam=SamConfig(**_only(sam, _SAM)), second=second)

    def to_section(self, vision: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `vision_config` with the keys that the file had and every value that differs from the defaults."""
        out = dict(vision)
        given = out.get("width")
        sections = dict(given) if isinstance(given, Mapping) else {}
        halves: list[tuple[str, str, Any, dict[str, Any]]]
        if isinstance(self.second, QueryEncoderConfig):
            sam_defaults = {**_SAM, "downsample_channels": (_SAM["downsample_channels"][0], self.second.dim)}
            halves = [("sam", SAM_NAME, self.sam, sam_defaults), ("qwen2", QUERIES_NAME, self.second, _QUERIES)]
        else:
            halves = [("sam", SAM_NAME, self.sam, _SAM), ("clip", CLIP_NAME, self.second, _CLIP)]
        for start, name, config, defaults in halves:
            key = next((key for key in sections if str(key).startswith(start)), name)
            section = dict(sections.get(key, {}))
            if start == "sam" and "image_size" not in section:
                out["image_size"] = self.sam.image_size
                defaults = {**defaults, "image_size": self.sam.image_size}
            for field, value in dataclasses.asdict(config).items():
                if field in section or value != defaults[field]:
                    section[field] = list(value) if isinstance(value, tuple) else value
            sections[key] = section
        return {**out, "width": sections}


def _named(sections: Mapping[str, Any], start: str) -> Mapping[str, Any]:
    found: Any = next((value for key, value in sections.items() if str(key).lower().startswith(start)), {})
    return found if isinstance(found, Mapping) else {}


def _only(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in known}


def _require_whole(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")


def _require_divided(what: str, value: int, by_what: str, by: int) -> None:
    if value % by:
        raise UserError(f"{what} must be a multiple of {by_what} ({by}), got {value}")
