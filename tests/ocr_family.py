"""Folders of the DeepSeek-OCR family without weights: its configurations, as far as they are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.reference import CHECKPOINTS
from vl2.config import preset

SAM = {"sam_vit_b": {"width": 768, "layers": 12, "heads": 12, "global_attn_indexes": [2, 5, 8, 11]}}
CLIP = {"clip-l-14-224": {"width": 1024, "layers": 24, "heads": 16, "image_size": 224, "patch_size": 14}}
QWEN = {"qwen2-0-5b": {"dim": 896}}


def released(name: str, width: Any, input_dim: int) -> dict[str, Any]:
    """Return a released configuration: DeepSeek-VL2-Tiny's model type and language model, another encoder."""
    return {
        "_name_or_path": f"somewhere/{name}",
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {"AutoConfig": f"modeling.{name}Config", "AutoModel": f"modeling.{name}ForCausalLM"},
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [[1024, 1024]],
        "tile_tag": "2D",
        "global_view_pos": "head",
        "torch_dtype": "bfloat16",
        "language_config": preset("tiny").to_dict()["language_config"],
        "projector_config": {"model_type": "mlp_projector", "projector_type": "linear", "input_dim": input_dim,
                             "n_embed": 1280},
        "vision_config": {"model_type": "vision", "model_name": "deeplip_b_l", "image_size": 1024, "width": width},
    }  # fmt: skip


OCR = released("DeepseekOCR", {**CLIP, **SAM}, 2048)
OCR_2 = released("DeepseekOCR2", {**QWEN, **SAM}, 896)
UNLIMITED = released("UnlimitedOCR", {**CLIP, **SAM}, 2048)
NAMELESS = {k: v for k, v in OCR.items() if k not in ("_name_or_path", "architectures", "auto_map")}
# Those that are not run, and what is said of them.
_OTHER_ENCODERS = {"width": {"sam_vit_b": {}, "siglip2": {}}}
_CONVERTED = {"model_type": "unlimited_ocr", "text_config": {}, "vision_config": {}}
UNKNOWN = {**OCR, "vision_config": _OTHER_ENCODERS}
FAMILY = [
    (UNKNOWN, "a model of the DeepSeek-OCR family: it has image encoders"),
    (_CONVERTED, "Unlimited-OCR as transformers converts it"),
    ({**_CONVERTED, "model_type": "deepseek_ocr2"}, "DeepSeek-OCR-2 as transformers converts it"),
]


def write_folder(folder: Path, config: dict[str, Any], *, is_bare: bool = False) -> Path:
    """Write a checkpoint folder with a configuration and, unless bare, readable tokenizer and processor files."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_bare:
        for file in (CHECKPOINTS / "tiny").iterdir():
            if file.suffix == ".json" and file.name != "config.json":
                shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
