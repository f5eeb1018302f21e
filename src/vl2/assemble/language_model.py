"""Read DeepSeek language models from the hub: the layouts of DeepSeek-V2 (latent attention) and DeepSeek-MoE (plain).

Their tensor names are ours without the prefix "language.". Their config.json has the same settings, but some of the
keys differ.

Sources: config.json of DeepSeek-V2-Lite and DeepSeek-MoE-16B, DeepseekV2Config in transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vl2.assemble.stored_part import Origin
from vl2.config import RELEASED_DEFAULTS, SUPPORTED_VALUES, Json, LanguageConfig
from vl2.errors import UserError

PREFIX = "language."
EMBEDDINGS, HEAD = "language.model.embed_tokens.weight", "language.lm_head.weight"
USES_MLA = {"deepseek_v2": True, "deepseek": False}  # by model_type
CONTEXT = 4096  # tokens; the paper's training stages and the released models' settings use this length

# Keys that config.json must have, because the classes that read these files differ in their default values.
REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace",
    "rms_norm_eps", "max_position_embeddings", "norm_topk_prob", "bos_token_id", "eos_token_id",
)  # fmt: skip
REQUIRED_MLA = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
WITHOUT_MLA: Json = {
    "kv_lora_rank": None, "q_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0,
}  # fmt: skip

# Old versions of transformers saved the frequencies of the rotary embedding, which we compute instead.
DROPPABLE = {"rotary frequencies": r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"}


def language_config(folder: Path, values: Json) -> Json:
    """Return the language_config of our config.json, given the values of a language model's config.json.

    Raise UserError if the model type does not fit or a key is missing. Unsupported values are refused later, when the
    complete configuration is read.
    """
    kind = values.get("model_type")
    if kind not in USES_MLA:
        allowed = " or ".join(map(repr, USES_MLA))
        raise UserError(f"{folder} is no language model that fits: model_type must be {allowed}, got {kind!r}")
    use_mla = USES_MLA[kind]
    for key in (*REQUIRED, *(REQUIRED_MLA if use_mla else ())):
        if key not in values:
            raise UserError(f"{folder}/config.json has no {key}")
    theta, scaling = _rope(folder, values)
    defaults = RELEASED_DEFAULTS["language_config"]
    names = [f.name for f in dataclasses.fields(LanguageConfig)]
    checked = [key for key in SUPPORTED_VALUES["language_config"] if key in values]
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        **{name: values.get(name, defaults[name]) for name in names},
        **{key: values[key] for key in checked},
        **({} if use_mla else WITHOUT_MLA),
        "use_mla": use_mla,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_position_embeddings": min(values["max_position_embeddings"], CONTEXT),
    }


def origins(ours: Mapping[str, tuple[int, ...]], stored_rows: int) -> dict[str, Origin]:
    """Return the origin of each of our tensors, whose names begin with "language.".

    `stored_rows` is the number of rows in the language model's own embedding table.
    """
    return {
        name: Origin(
            names=(name.removeprefix(PREFIX),), shape=(stored_rows, *shape[1:]) if name in (EMBEDDINGS, HEAD) else shape
        )
        for name, shape in ours.items()
    }


def _rope(folder: Path, values: Json) -> tuple[float, Json | None]:
    """Return the base of the rotary embedding and its scaling (None for no scaling).

    Older files store them under two keys, newer ones under `rope_parameters`.
    """
    joint: Json = values.get("rope_parameters") or {}
    theta: Any = values.get("rope_theta", joint.get("rope_theta"))
    if theta is None:
        raise UserError(f"{folder}/config.json has neither rope_theta nor rope_parameters")
    scaling: Json = dict(values.get("rope_scaling") or joint)
    kind = scaling.pop("rope_type", scaling.get("type", "default"))
    scaling.pop("rope_theta", None)
    return theta, None if kind == "default" else {**scaling, "type": kind}
