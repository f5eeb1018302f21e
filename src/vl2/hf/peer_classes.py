# mypy: allow-untyped-calls
"""Open a checkpoint of the DeepSeek-OCR family with transformers' own classes, to compare their logits with ours.

transformers renames the released weights by itself. Its class of Unlimited-OCR is used for DeepSeek-OCR too, for which
it has none: they differ in the window over answers alone.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.model_kind import ModelKind
from vl2.process.sample import Sample

NO_WINDOW = 1_000_000  # tokens; longer than any answer

# The module of transformers that has the classes of a model.
MODULES: dict[ModelKind, str] = {
    "DeepSeek-OCR": "unlimited_ocr",
    "Unlimited-OCR": "unlimited_ocr",
    "DeepSeek-OCR-2": "deepseek_ocr2",
}


def missing_classes(kind: ModelKind) -> str | None:
    """Return in one sentence why the classes of a model cannot be used, or None if they can."""
    name = f"transformers.models.{MODULES[kind]}"
    if importlib.util.find_spec(name) is None:
        return f"transformers {version('transformers')} has no {MODULES[kind]}"
    return None


def open_in_transformers(config: ModelConfig, folder: Path, image_id: int) -> Any:
    """Return the model in a folder as transformers computes it, in float32 on the CPU.

    `image_id` is the id of `<image>`. Raise UserError if transformers leaves a weight of the model without a value, or
    does not read one of the files.
    """
    from transformers.utils import logging

    kind, given = (_ocr_2 if config.kind == "DeepSeek-OCR-2" else _unlimited_ocr)(config, image_id)
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(folder, config=given, dtype=torch.float32, output_loading_info=True)
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    left = sorted(str(name) for key, names in report.items() if key != "unexpected_keys" for name in names)
    # SAM's map takes the place of CLIP's patch embedding, which is in the files all the same.
    left += sorted(name for name in report["unexpected_keys"] if "patch_embedding" not in name)
    if left:
        raise UserError(f"transformers does not read this checkpoint: {len(left)} tensors do not fit, first {left[0]}")
    return model.eval()


@torch.inference_mode()
def peer_logits(model: Any, sample: Sample, answer_ids: Sequence[int]) -> Tensor:
    """Return the logits that predict each token of an answer, float32 [N, V], from one forward pass without a cache.

    The answer must fit into the window of Unlimited-OCR, since transformers takes all tokens of a pass for the prompt.
    """
    ids = torch.cat((sample.input_ids, torch.tensor(answer_ids[:-1], dtype=torch.int64))).unsqueeze(0)
    layout = sample.layout
    given: dict[str, Any] = {}
    if sample.overviews is not None:
        given = {
            "pixel_values": sample.overviews,
            "pixel_values_local": sample.tiles if len(sample.tiles) else None,
            "num_local_patches": [layout.num_tiles(grid) for grid in sample.grid_list],
        }
        if "patches_grid" in inspect.signature(model.forward).parameters:
            given["patches_grid"] = [list(grid) for grid in sample.grid_list]
    logits_SV: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), **given).logits[0]
    return logits_SV[len(sample) - 1 :].float()


def _unlimited_ocr(config: ModelConfig, image_id: int) -> tuple[Any, Any]:
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
        text_config={**_text(config), "sliding_window": config.answer_window or NO_WINDOW},
        image_token_id=image_id,
    )
    return UnlimitedOcrForConditionalGeneration, given


def _ocr_2(config: ModelConfig, image_id: int) -> tuple[Any, Any]:
    from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2Config
    from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2ForConditionalGeneration

    vision: Any = config.vision_config
    queries = vision.second
    encoder = {
        "hidden_size": queries.dim, "num_hidden_layers": queries.layers, "num_attention_heads": queries.heads,
        "num_key_value_heads": queries.kv_heads, "intermediate_size": queries.intermediate_size,
        "rms_norm_eps": queries.rms_norm_eps, "vocab_size": 1,
        "rope_parameters": {"rope_theta": queries.rope_theta, "rope_type": "default"},
    }  # fmt: skip
    given = DeepseekOcr2Config(
        vision_config={"sam_config": _sam(vision.sam), "encoder_config": encoder},
        text_config=_text(config),
        image_token_id=image_id,
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
    kinds = ["sparse" if language.is_moe_layer(index) else "dense" for index in range(language.num_hidden_layers)]
    return {
        "mlp_layer_types": kinds, "rms_norm_eps": language.rms_norm_eps,
        "rope_parameters": {"rope_theta": language.rope_theta, "rope_type": "default"},
        "vocab_size": language.vocab_size, "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size, "moe_intermediate_size": language.moe_intermediate_size,
        "num_hidden_layers": language.num_hidden_layers, "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_attention_heads, "n_routed_experts": language.n_routed_experts,
        "num_experts_per_tok": language.num_experts_per_tok, "n_shared_experts": language.n_shared_experts,
    }  # fmt: skip
