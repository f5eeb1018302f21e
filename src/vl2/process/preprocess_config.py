"""The settings in processor_config.json, keyed like the released file. Golden: tests/golden/reference/checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.process.sample import IGNORE_ID
from vl2.process.tiling import Size
from vl2.process.tokenizer import IMAGE, PAD

# The defaults of the released processor class for keys that the file leaves out.
_DEFAULTS: dict[str, Any] = {
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "normalize": True,
    "image_token": IMAGE,
    "pad_token": PAD,
    "add_special_token": False,
    "sft_format": "deepseek",
    "mask_prompt": True,
    "ignore_id": IGNORE_ID,
    "image_scale": 1.0,
}

# Keys with only one supported value. Others would change the tokens, and no released checkpoint has them.
_SUPPORTED: dict[str, Any] = {
    "image_token": IMAGE,
    "add_special_token": False,
    "sft_format": "deepseek",
    "ignore_id": IGNORE_ID,
}


MOST_IMAGE_SCALE = 8


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How pictures are tiled and normalized. Field names are the keys of processor_config.json."""

    candidate_resolutions: tuple[Size, ...]  # sizes of canvases, (width, height) in pixels; the first is one tile
    patch_size: int
    downsample_ratio: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    normalize: bool
    image_token: str
    pad_token: str
    add_special_token: bool
    sft_format: str
    mask_prompt: bool  # kept for writing the file; `encode` takes it as an argument
    ignore_id: int
    image_scale: float = 1.0  # canvases are chosen as for images so many times as large; no released file has it
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for key, only in _SUPPORTED.items():
            if getattr(self, key) != only:
                raise UserError(f"{key} must be {only!r}, the only value supported, got {getattr(self, key)!r}")
        if not self.candidate_resolutions:
            raise UserError("candidate_resolutions must hold at least one size, got none")
        for key in ("patch_size", "downsample_ratio"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise UserError(f"{key} must be a whole number of at least 1, got {getattr(self, key)!r}")
        if not 0 < self.image_scale <= MOST_IMAGE_SCALE:
            raise UserError(f"image_scale must be above 0 and at most {MOST_IMAGE_SCALE}, got {self.image_scale}")
        tile = self.tile_px
        for canvas in self.candidate_resolutions:
            if any(side < 1 or side % tile for side in canvas):
                raise UserError(f"candidate_resolutions must be multiples of the tile ({tile}), got {list(canvas)}")

    @property
    def tile_px(self) -> int:
        """P, the side of a tile in pixels."""
        return self.candidate_resolutions[0][0]

    @property
    def tokens_per_side(self) -> int:
        """Visual tokens along one side of a tile, after the pixel shuffle (14 for 384 px tiles)."""
        return -(-(self.tile_px // self.patch_size) // self.downsample_ratio)

    @property
    def padding_color(self) -> tuple[int, int, int]:
        """The mean as a color, (127, 127, 127) for the released settings."""
        red, green, blue = (int(channel * 255) for channel in self.image_mean)
        return red, green, blue

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessConfig:
        """Read the keys of a processor_config.json. Raise UserError, naming the key, if one is missing or wrong."""
        for key in ("candidate_resolutions", "patch_size", "downsample_ratio"):
            if key not in values:
                raise UserError(f"processor_config.json has no {key}: is this a DeepSeek-VL2 checkpoint?")
        try:
            canvases = tuple((int(width), int(height)) for width, height in values["candidate_resolutions"])
        except (TypeError, ValueError, OverflowError):
            raise UserError("candidate_resolutions must be a list of [width, height]") from None
        filled = {key: values.get(key, default) for key, default in _DEFAULTS.items()}
        return cls(
            candidate_resolutions=canvases,
            patch_size=values["patch_size"],
            downsample_ratio=values["downsample_ratio"],
            image_mean=_three(filled["image_mean"], "image_mean"),
            image_std=_three(filled["image_std"], "image_std"),
            normalize=bool(filled["normalize"]),
            image_token=filled["image_token"],
            pad_token=filled["pad_token"],
            add_special_token=filled["add_special_token"],
            sft_format=filled["sft_format"],
            mask_prompt=bool(filled["mask_prompt"]),
            ignore_id=filled["ignore_id"],
            image_scale=_number(filled["image_scale"], "image_scale"),
            source=values,
        )

    @classmethod
    def from_file(cls, path: Path | str) -> PreprocessConfig:
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no {path.name} in {path.parent}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:  # JSON or UTF-8
            raise UserError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of processor_config.json with this object's values.

        These are the keys of the source, and all others whose value is not the default.
        """
        out: dict[str, Any] = json.loads(json.dumps(dict(self.source)))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name != "source" and (item.name in out or value != _DEFAULTS.get(item.name)):
                out[item.name] = json.loads(json.dumps(value))
        return out


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        raise UserError(f"{key} is too large a number") from None


def _three(values: Any, key: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{key} must be three numbers, got {values!r}") from None
    if key == "image_std" and min(red, green, blue) <= 0:
        raise UserError(f"image_std must be positive, got {values!r}")
    return red, green, blue
