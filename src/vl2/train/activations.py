"""Count the activations that a layer keeps for its backward pass: the inputs of its products and of what lies between.

Counts are values per token of a decoder layer, and per patch of a vision block.
"""

from __future__ import annotations

from vl2.config import LanguageConfig, VisionConfig


def layer_values(language: LanguageConfig, *, is_moe: bool) -> int:
    """Return the values that a decoder layer keeps for each token, its input among them."""
    width, heads = language.hidden_size, language.num_attention_heads
    if language.use_mla:
        query = heads * (language.qk_nope_head_dim + language.qk_rope_head_dim)
        latent = (language.kv_lora_rank or 0) + language.qk_rope_head_dim
        values = heads * language.v_head_dim
        attention = 2 * query + 2 * latent + heads * language.qk_nope_head_dim + query + 3 * values
    else:
        attention = 6 * width
    if not is_moe:
        return 6 * width + attention + 4 * language.intermediate_size
    routed = (language.num_experts_per_tok or 0) * (3 * width + 4 * language.moe_intermediate_size)
    return 6 * width + attention + routed + 4 * (language.n_shared_experts or 0) * language.moe_intermediate_size


def block_values(vision: VisionConfig) -> int:
    """Return the values that a vision block keeps for each patch, its input among them."""
    return 12 * vision.width + 2 * vision.mlp_width
