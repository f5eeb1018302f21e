"""A checkpoint of ours, opened by transformers' own classes of the DeepSeek-OCR family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

from vl2.config import ModelConfig


def open_in_transformers(config: ModelConfig, folder: Path, window: int) -> Any:
    """Load a folder that we have written by transformers' own renaming of released names."""
    vision: Any = config.vision_config
    sam, clip, language = vision.sam, vision.clip, config.language_config
    given = UnlimitedOcrConfig(
        vision_config={
            "sam_config": {
                "hidden_size": sam.width, "num_hidden_layers": sam.layers, "num_attention_heads": sam.heads,
                "global_attn_indexes": list(sam.global_attn_indexes), "output_channels": sam.neck_channels,
                "mlp_dim": sam.width * sam.mlp_ratio, "downsample_channels": list(sam.downsample_channels),
            },
            "encoder_config": {
                "hidden_size": clip.width, "num_hidden_layers": clip.layers, "num_attention_heads": clip.heads,
                "intermediate_size": clip.width * clip.mlp_ratio,
            },
        },
        text_config={
            "vocab_size": language.vocab_size, "hidden_size": language.hidden_size,
            "intermediate_size": language.intermediate_size, "moe_intermediate_size": language.moe_intermediate_size,
            "num_hidden_layers": language.num_hidden_layers, "num_attention_heads": language.num_attention_heads,
            "num_key_value_heads": language.num_attention_heads, "n_routed_experts": language.n_routed_experts,
            "num_experts_per_tok": language.num_experts_per_tok, "n_shared_experts": language.n_shared_experts,
            "sliding_window": window,
        },
        image_token_id=4088,
    )  # fmt: skip
    model, report = UnlimitedOcrForConditionalGeneration.from_pretrained(
        folder, config=given, dtype=torch.float32, output_loading_info=True
    )
    left = {key: value for key, value in report.items() if value and key != "unexpected_keys"}
    unread = [name for name in report["unexpected_keys"] if "patch_embedding" not in name]
    assert not left, left
    assert not unread, unread
    return model.eval()
