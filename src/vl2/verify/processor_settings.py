"""Group 4: compare processor_config.json with the released values, or with config.json if it is of no released size."""

from __future__ import annotations

import dataclasses
from typing import Any

from vl2.deep_encoder_config import DeepEncoderConfig
from vl2.errors import UserError
from vl2.process.preprocess_config import PreprocessConfig
from vl2.verify.check import GROUPS, Check, listed, passed_if
from vl2.verify.subject import Subject, processor_settings

GROUP = GROUPS[3]
# These change no answer, and the released value of mask_prompt is not known. The views of the DeepSeek-OCR family are
# fixed, and its canvases unused.
TRAINING_ONLY = ("mask_prompt",)
UNUSED_BY_OCR = ("candidate_resolutions",)


def check_processor(subject: Subject) -> list[Check]:
    try:
        ours = PreprocessConfig.from_file(subject.folder / "processor_config.json")
    except UserError as error:
        return [_check([str(error)], [], "")]
    if subject.size is None:
        return [_check(_disagreements(ours, subject), [], "tiles and patches are those of config.json")]
    mine, theirs = _values(ours), _values(processor_settings(subject.size))
    lines = {
        key: f"{key}: {_shown(mine[key])}, {subject.size} has {_shown(theirs[key])}"
        for key in theirs
        if mine[key] != theirs[key]
    }
    is_vl2 = subject.kind == "DeepSeek-VL2"
    unused = TRAINING_ONLY if is_vl2 else (*TRAINING_ONLY, *UNUSED_BY_OCR)
    wrong = [line for key, line in lines.items() if key not in unused]
    noted = [f"{line} (changes no answer)" for key, line in lines.items() if key in unused]
    tiles = f": {len(ours.candidate_resolutions)} canvases, tiles of {ours.tile_px} px" if is_vl2 else ""
    summary = f"all values of {subject.size}{tiles}"
    return [_check(wrong, noted, summary)]


def _check(wrong: list[str], noted: list[str], summary: str) -> Check:
    found = wrong[0] if wrong else summary
    details = listed(wrong[1:] + noted)
    return Check(group=GROUP, name="processor_config.json", verdict=passed_if(not wrong), found=found, details=details)


def _disagreements(ours: PreprocessConfig, subject: Subject) -> list[str]:
    if subject.config is None:
        return []
    vision = subject.config.vision_config
    if isinstance(vision, DeepEncoderConfig):
        per_token = ours.patch_size * ours.downsample_ratio
        pairs = [
            ("patch_size", ours.patch_size, vision.sam.patch_size),
            ("patch_size * downsample_ratio", per_token, vision.pixels_per_token),
        ]
    else:
        pairs = [
            ("tile", ours.tile_px, vision.image_size),
            ("patch_size", ours.patch_size, vision.patch_size),
            ("downsample_ratio", ours.downsample_ratio, subject.config.projector_config.downsample_ratio),
        ]
    return [f"{name}: {mine}, config.json says {other}" for name, mine, other in pairs if mine != other]


def _values(config: PreprocessConfig) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name != "source"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
