"""Make a model of the DeepSeek-OCR family that is small enough for every test, with reproducible weights.

The values of a tensor depend only on its name in the files: they come from NumPy's RandomState, whose stream never
changes, seeded with the name's CRC-32. Another implementation can therefore get the same weights without a file, and
tools/make_ocr_goldens.py records what it computes. Matrices have a standard deviation of 1 / sqrt(inputs), so that
every layer affects the output, and the token table has one of 1, so that tokens differ clearly.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl2.checkpoint.empty_model import build_empty, materialize
from vl2.checkpoint.names import places
from vl2.checkpoint.random_checkpoint import ocr_tokenizer_json
from vl2.checkpoint.write import save_model
from vl2.config import Json, ModelConfig, preset
from vl2.model import VL2

PROCESSOR: Json = {
    "candidate_resolutions": [[1024, 1024]],
    "downsample_ratio": 4,
    "patch_size": 16,
    "mask_prompt": False,
    "processor_class": "DeepseekVLV2Processor",
}


def toy_config(kind: str = "deepseek-ocr", *, sliding_window: int = 16) -> ModelConfig:
    """Return a small configuration of one of OCR_PRESETS with the released image views and tokens."""
    values = preset(kind).to_dict()
    if "sliding_window" in values:
        values["sliding_window"] = sliding_window
    values["language_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "vocab_size": 4096,
    }
    clip = {"heads": 4, "image_size": 224, "layers": 2, "patch_size": 14, "width": 32}
    queries = {"dim": 32, "heads": 4, "intermediate_size": 48, "kv_heads": 2, "layers": 2}
    sam = {
        "downsample_channels": [24, 32],
        "global_attn_indexes": [1],
        "heads": 4,
        "layers": 3,
        "neck_channels": 16,
        "width": 48,
    }
    has_queries = kind == "deepseek-ocr-2"
    second = {"qwen2-0-5b": queries} if has_queries else {"clip-l-14-224": clip}
    values["vision_config"]["width"] = {**second, "sam_vit_b": sam}
    values["projector_config"] |= {"input_dim": 32 if has_queries else 64, "n_embed": 64}
    values["torch_dtype"] = "float32"
    return ModelConfig.from_dict(values)


def drawn_by_name(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the float32 values of the tensor with this name in the files."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("embed_tokens.weight"):
        pass
    elif len(shape) > 1:
        inputs = int(np.prod(shape[1:])) if name.endswith(".weight") else shape[-1]
        values *= np.float32(inputs**-0.5)
    elif "norm" in name and name.endswith(".weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values *= np.float32(0.1)
    return torch.from_numpy(values)


@torch.no_grad()
def drawn_model(config: ModelConfig) -> VL2:
    """Return a model in evaluation mode whose weights are those of `drawn_by_name`."""
    model = build_empty(config)
    materialize(model, torch.float32, torch.device("cpu"))
    state = model.state_dict()
    for place in places(model):
        target = place.view(state[place.parameter])
        target.copy_(drawn_by_name(place.name, tuple(target.shape)))
    return model.eval()


def write_toy_checkpoint(folder: Path, config: ModelConfig | None = None, **json_files: Any) -> None:
    """Write a toy checkpoint to a new folder, with processor settings and a tokenizer derived from the built-in one."""
    config = config or toy_config()
    files = {"processor_config.json": PROCESSOR, "tokenizer.json": json.loads(ocr_tokenizer_json())}
    save_model(drawn_model(config), folder, extra_json={**files, **json_files})
