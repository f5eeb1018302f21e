"""Make the JSON files of an assembled checkpoint: config.json, processor_config.json and tokenizer_config.json."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from vl2.assemble.sources import Language, Vision
from vl2.config import Json, ModelConfig, preset
from vl2.process.tokenizer import BOS, EOS, PAD

PROCESSOR_CONFIG, TOKENIZER_CONFIG = "processor_config.json", "tokenizer_config.json"
# Keys of a language model's tokenizer_config.json that are dropped. Its chat template is not DeepSeek-VL2's, and
# tokenizer.json already has the tokens.
NOT_KEPT = ("chat_template", "auto_map", "added_tokens_decoder", "additional_special_tokens", "name_or_path")


def model_config(language: Language, vision: Vision, dtype: str) -> ModelConfig:
    """Return the configuration. Raise UserError for a value that this package does not implement."""
    released = preset("small")
    tile, released_tile = vision.config.get("image_size", 384), released.siglip.image_size
    tokenizer = language.vocabulary.tokenizer
    values = {
        # The paper's grids of tiles, scaled to the encoder's tile size.
        "candidate_resolutions": [
            [width // released_tile * tile, height // released_tile * tile]
            for width, height in released.source["candidate_resolutions"]
        ],
        "global_view_pos": "head",
        "language_config": {
            **language.config,
            "vocab_size": language.vocabulary.rows,
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "torch_dtype": dtype,
        },
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "model_type": "mlp_projector",
            "input_dim": vision.config["width"],
            "n_embed": language.config["hidden_size"],
        },
        "tile_tag": "2D",
        "torch_dtype": dtype,
        "vision_config": vision.config,
    }
    config = ModelConfig.from_dict(values)
    if config.siglip == released.siglip:
        name = released.source["vision_config"]["model_name"]
    else:
        name = vision.config.get("model_name", f"siglip_patch{config.siglip.patch_size}_{tile}")
    return ModelConfig.from_dict({**values, "vision_config": {"model_name": name, **vision.config}})


def processor_config(config: ModelConfig) -> Json:
    """Return the released processor_config.json, adapted to the tiles of this encoder."""
    released: Json = json.loads((resources.files("vl2") / "presets" / PROCESSOR_CONFIG).read_text(encoding="utf-8"))
    return {
        **released,
        "candidate_resolutions": config.source["candidate_resolutions"],
        "patch_size": config.siglip.patch_size,
        "downsample_ratio": config.projector_config.downsample_ratio,
    }


def tokenizer_config(language: Language, config: ModelConfig) -> Json:
    """Return tokenizer_config.json, which transformers needs: the language model's own, with our special tokens."""
    beside = language.tokenizer_file.with_name(TOKENIZER_CONFIG)
    own: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    return {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        **{key: value for key, value in own.items() if key not in NOT_KEPT},
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": config.language_config.max_position_embeddings,
    }
