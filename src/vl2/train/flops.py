"""Count the operations of a training step by formula, and measure the rate of matrix products on a device.

One multiply-add is two operations. The count includes the matrix products of the active weights for each token, the
causal half of the attention scores for each document, and the patches of each tile. Recomputed activations and padding
do not count, so the achieved fraction of the machine's rate is useful work (MFU). A backward pass costs as much as the
forward pass for the gradients of activations, and as much again for the gradients of trained weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vl2.config import ModelConfig
from vl2.deep_encoder_config import ClipConfig, DeepEncoderConfig, QueryEncoderConfig
from vl2.kernels.matmul import has_bfloat16_products
from vl2.process.page_views import PAGE_RULES
from vl2.timing import best_seconds
from vl2.train.stage import Part


@dataclass(frozen=True, kw_only=True)
class ForwardCost:
    """The operations of one forward pass, by the quantity with which they grow."""

    per_token: float  # the language model without attention scores and logits
    per_token_in_end: float  # the part of `per_token` in the last layer that only the token's own state needs
    per_logit: float  # one trained position
    per_pair: float  # one token attending to one earlier token, in all layers
    per_tile_vision: float
    per_tile_projector: float
    per_overview_vision: float = 0.0  # an overview that is not a tile
    per_overview_projector: float = 0.0

    @classmethod
    def of(cls, config: ModelConfig) -> ForwardCost:
        """Compute the costs of a model configuration."""
        language = config.language_config
        width, heads = language.hidden_size, language.num_attention_heads
        if language.use_mla:
            rank, rope, nope, value = (
                language.kv_lora_rank or 0, language.qk_rope_head_dim, language.qk_nope_head_dim, language.v_head_dim,
            )  # fmt: skip
            query = width * heads * (nope + rope)
            if language.q_lora_rank is not None:
                query = width * language.q_lora_rank + language.q_lora_rank * heads * (nope + rope)
            seen = width * (rank + rope)
            attention = query + seen + rank * heads * (nope + value) + heads * value * width
            pair = heads * (nope + rope + value)
        else:
            head = width // heads
            seen = 2 * width * language.num_kv_heads * head
            attention = 2 * width * width + seen
            pair = 2 * width
        weights = in_end = 0
        for layer in range(language.num_hidden_layers):
            if language.is_moe_layer(layer):
                experts = (language.num_experts_per_tok or 0) + (language.n_shared_experts or 0)
                mlp = 3 * width * language.moe_intermediate_size * experts + width * (language.n_routed_experts or 0)
            else:
                mlp = 3 * width * language.intermediate_size
            weights += attention + mlp
            in_end = attention - seen + mlp
        if isinstance(config.vision_config, DeepEncoderConfig):
            rules = PAGE_RULES[config.kind]
            views = [_deep_view_cost(config, px) for px in (rules.crop_px, rules.view_px["gundam"])]
        else:
            views = [_tile_cost(config), (0.0, 0.0)]
        (tile_vision, tile_projector), (overview_vision, overview_projector) = views
        return cls(
            per_token=2.0 * weights,
            per_token_in_end=2.0 * in_end,
            per_logit=2.0 * width * language.vocab_size,
            per_pair=2.0 * pair * language.num_hidden_layers,
            per_tile_vision=tile_vision,
            per_tile_projector=tile_projector,
            per_overview_vision=overview_vision,
            per_overview_projector=overview_projector,
        )


def _tile_cost(config: ModelConfig) -> tuple[float, float]:
    """Return the operations of DeepSeek-VL2's encoder and projector for one tile."""
    vision, projector = config.siglip, config.projector_config
    patches = vision.patches_per_side**2
    block = 4 * vision.width**2 + 2 * vision.width * vision.mlp_width
    encoder = vision.layers * (patches * block + patches * patches * 2 * vision.width)
    encoder += patches * 3 * vision.patch_size**2 * vision.width
    joined = projector.input_dim * projector.downsample_ratio**2
    adaptor = config.tokens_per_side**2 * (joined * projector.n_embed + projector.n_embed**2)
    return 2.0 * encoder, 2.0 * adaptor


def _deep_view_cost(config: ModelConfig, view_px: int) -> tuple[float, float]:
    """Return the operations of DeepEncoder and the projector for one view of this side."""
    vision: Any = config.vision_config
    sam, projector = vision.sam, config.projector_config
    side = view_px // sam.patch_size
    patches, tokens = side**2, vision.tokens_per_side(view_px) ** 2
    padded = (-(-side // sam.window_size) * sam.window_size) ** 2  # patches of whole windows
    num_global = len(set(sam.global_attn_indexes))
    attended = num_global * patches + (sam.layers - num_global) * padded
    pairs = num_global * patches**2 + (sam.layers - num_global) * padded * sam.window_size**2
    weights = attended * 4 * sam.width**2 + sam.layers * patches * 2 * sam.mlp_ratio * sam.width**2
    first, second = sam.downsample_channels
    neck = patches * (sam.width * sam.neck_channels + 9 * sam.neck_channels**2)
    halved = 9 * (patches // 4 * sam.neck_channels * first + patches // 16 * first * second)
    embedded = patches * 3 * sam.patch_size**2 * sam.width
    of_sam = weights + pairs * 2 * sam.width + neck + halved + embedded
    of_second = _second_half_cost(vision.second, tokens)
    return 2.0 * (of_sam + of_second), 2.0 * tokens * projector.input_dim * projector.n_embed


def _second_half_cost(second: ClipConfig | QueryEncoderConfig, tokens: int) -> float:
    """Return the multiply-adds of DeepEncoder's second half for a map of this many tokens."""
    if isinstance(second, QueryEncoderConfig):
        width, read = second.dim, 2 * tokens
        attention = 2 * width**2 + 2 * width * second.kv_heads * second.head_dim
        per_token = attention + 3 * width * second.intermediate_size
    else:
        width, read = second.width, tokens + 1
        per_token = (4 + 2 * second.mlp_ratio) * width**2
    return float(second.layers * (read * per_token + read**2 * 2 * width))


def step_flops(
    cost: ForwardCost,
    frozen: Iterable[Part],
    *,
    lengths: Iterable[float],
    num_trained: int,
    num_tiles: int,
    num_overviews: int = 0,
    trains_weights: bool = True,
) -> float:
    """Return the operations of a training step, forward and backward, over documents of these lengths.

    Nothing is trained in the parts `frozen`. With `trains_weights=False` an adapter is trained in the other parts: no
    gradients of weights are computed, and the adapter's own operations are not counted.
    """
    still = set(frozen)
    lengths = list(lengths)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    language = cost.per_token * sum(lengths) + cost.per_logit * num_trained + cost.per_pair * pairs
    # Gradients of activations flow through a frozen part only if an earlier part is trained.
    to_vision = "vision" not in still
    to_projector = to_vision or "projector" not in still
    in_projector = cost.per_tile_projector * num_tiles + cost.per_overview_projector * num_overviews
    in_vision = cost.per_tile_vision * num_tiles + cost.per_overview_vision * num_overviews
    return (
        language * (1 + (to_projector or "language" not in still) + (trains_weights and "language" not in still))
        + in_projector * (1 + to_projector + (trains_weights and "projector" not in still))
        + in_vision * (1 + to_vision + (trains_weights and to_vision))
    )


def measure_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 3) -> float:
    """Return the operations per second of one large matrix product, the best of `repeats`."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.ones(size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / best_seconds(lambda: a @ a, device, repeats)


def matmul_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the device has instructions for it, else float32.

    A CPU without them emulates bfloat16 products at a tenth of the speed of float32 (Zen 3: 6.5 and 65 GFLOP/s).
    """
    return torch.float32 if device.type == "cpu" and not has_bfloat16_products() else torch.bfloat16
