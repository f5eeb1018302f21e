"""A checkpoint of ours, opened by transformers' own classes of the DeepSeek-OCR family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vl2.config import ModelConfig


def open_in_transformers(config: ModelConfig, folder: Path, window: int | None = None) -> Any:
    """Load a folder that we have written by transformers' own renaming of released names.

    `window` is Unlimited-OCR's, which DeepSeek-OCR-2 does not have.
    """
    kind, given = _ocr_2(config) if config.kind == "DeepSeek-OCR-2" else _unlimited_ocr(config, window)
    model, report = kind.from_pretrained(folder, config=given, dtype=torch.float32, output_loading_info=True)
    left = {key: value for key, value in report.items() if value and key != "unexpected_keys"}
    unread = [name for name in report["unexpected_keys"] if "patch_embedding" not in name]
    assert not left, left
    assert not unread, unread
    return model.eval()


def _unlimited_ocr(config: ModelConfig, window: int | None) -> tuple[Any, Any]:
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

    vision: Any = config.vision_config
    clip = vision.second
    encoder = {
        "hidden_size": clip.width, "num_hidden_layers": clip.layers, "num_attention_heads": clip.heads,
        "intermediate_size": clip.width * clip.mlp_ratio,
    }  # fmt: skip
    given = UnlimitedOcrConfig(
        vision_config={"sam_config": _sam(vision.sam), "encoder_config": encoder},
        text_config={**_text(config), "sliding_window": window},
        image_token_id=4088,
    )
    return UnlimitedOcrForConditionalGeneration, given


def _ocr_2(config: ModelConfig) -> tuple[Any, Any]:
    from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2Config
    from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2ForConditionalGeneration

    vision, language = config.vision_config, config.language_config
    queries: Any = vision.second  # type: ignore[union-attr]
    # The numbers are those of the released code; the configuration of our toy has the same.
    encoder = {
        "hidden_size": queries.dim, "num_hidden_layers": queries.layers, "num_attention_heads": queries.heads,
        "num_key_value_heads": queries.kv_heads, "intermediate_size": queries.intermediate_size,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}, "vocab_size": 1,
    }  # fmt: skip
    kinds = ["sparse" if language.is_moe_layer(index) else "dense" for index in range(language.num_hidden_layers)]
    given = DeepseekOcr2Config(
        vision_config={"sam_config": _sam(vision.sam), "encoder_config": encoder},  # type: ignore[union-attr]
        text_config={**_text(config), "mlp_layer_types": kinds},
        image_token_id=4088,
    )
    return DeepseekOcr2ForConditionalGeneration, given


def _sam(sam: Any) -> dict[str, Any]:
    return {
        "hidden_size": sam.width, "num_hidden_layers": sam.layers, "num_attention_heads": sam.heads,
        "global_attn_indexes": list(sam.global_attn_indexes), "output_channels": sam.neck_channels,
        "mlp_dim": sam.width * sam.mlp_ratio, "downsample_channels": list(sam.downsample_channels),
    }  # fmt: skip


def _text(config: ModelConfig) -> dict[str, Any]:
    language = config.language_config
    return {
        "vocab_size": language.vocab_size, "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size, "moe_intermediate_size": language.moe_intermediate_size,
        "num_hidden_layers": language.num_hidden_layers, "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_attention_heads, "n_routed_experts": language.n_routed_experts,
        "num_experts_per_tok": language.num_experts_per_tok, "n_shared_experts": language.n_shared_experts,
    }  # fmt: skip
