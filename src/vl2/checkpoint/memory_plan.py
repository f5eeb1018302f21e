"""Predict the bytes of memory that a model will need before it is loaded: weights, KV cache, activations, caches.

Weights and KV cache are counted exactly, on the meta device. Activations are estimated by formula for the most
demanding pass. This is either the encoder on a batch of tiles on a CPU, or the prefill of a prompt that fills the
context and is not split into chunks (chunks need less).

This file also defines two limits of inference: how many tiles are encoded at once, and how many bytes of encoded images
and prompts are kept between requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from vl2.checkpoint.machine_memory import MachineMemory
from vl2.checkpoint.model_size import EXPERTS, weight_bytes
from vl2.config import ModelConfig
from vl2.deep_encoder_config import DeepEncoderConfig
from vl2.dtypes import DTYPES
from vl2.model.int8_cache import AS_MODEL, allocate_cache, check_cache
from vl2.model.sam import SCORES_AT_ONCE
from vl2.quant.quantize_model import SCHEME_NAMES, SCHEMES, Scheme

FORMATS = ("float32", "bfloat16", *SCHEME_NAMES)
# "crowded": the model fits only if other programs free memory. "paged": it fits if it is read from quantized files and
# only a part of the experts is held in memory.
Verdict = Literal["fits", "paged", "crowded", "too large"]
PROGRAM_BYTES = 400_000_000  # Python, PyTorch and its thread pools, measured on Linux
# Tiles encoded at once: enough to keep the device busy, few enough to bound the memory. On a CPU the limit is counted
# in patches (five large tiles), because the next tokens of other answers have to wait until the pass is finished.
TILES_PER_PASS = 16
PATCHES_PER_PASS_ON_CPU = 4096
DEFAULT_ENCODER_BYTES = 64 << 20  # for encoded images: 130 tiles of the tiny size, 64 of the base size
# For the KV caches of prompts: 2,150 tokens of the tiny size, 4,300 of small, 3,850 of base. That is at least two
# images.
DEFAULT_PREFIX_BYTES = 128 << 20
READ_ALWAYS = ("shared experts", "attention", "routers and norms", "dense layers", "head")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of memory that a model needs for inference."""

    weights: str  # one of FORMATS, or "quantized" for another scheme
    experts: int  # all routed experts, which can be paged if they are mapped from quantized files
    other_weights: int
    expert: int  # one routed expert
    experts_per_token: int  # number of routed experts that one token uses, summed over the layers
    read_per_token: int  # weights of the language model that are read to decode a single token
    cache: int
    activations: int
    reuse: int  # upper limit of what is kept of images and prompts between requests
    program: int = PROGRAM_BYTES

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        weights: str | Scheme,
        context: int,
        *,
        dtype: torch.dtype | None = None,
        cache: str = AS_MODEL,
        cache_tokens: int | None = None,
        reuse: int = DEFAULT_ENCODER_BYTES + DEFAULT_PREFIX_BYTES,
    ) -> MemoryPlan:
        """Plan for one conversation of `context` tokens, or for a KV cache of `cache_tokens` positions in total.

        `dtype` is the type of weights that are not quantized; None is the checkpoint's own type. It is ignored if
        `weights` is "float32" or "bfloat16". `reuse` is the limit of what is kept between requests.
        `cache` is the form of the KV cache, "auto" or "int8". Raise UserError if it is neither.
        """
        name = weights if isinstance(weights, str) else name_of(weights)
        dtype = DTYPES.get(name, dtype or getattr(torch, config.torch_dtype))
        parts = weight_bytes(config, weights, dtype)
        language = config.language_config
        layers = sum(language.is_moe_layer(i) for i in range(language.num_hidden_layers))
        experts = parts.get(EXPERTS, 0)
        form, meta = check_cache(cache, torch.device("cpu")), torch.device("meta")
        rows = allocate_cache(form, language, 1, cache_tokens or context, dtype=dtype, device=meta)
        activations = max(encoder_bytes(config, dtype.itemsize), prefill_bytes(config, context, dtype.itemsize))
        if form != AS_MODEL:  # a prompt is read with one layer at a time in the model's type
            plain = allocate_cache(AS_MODEL, language, 1, context, dtype=dtype, device=meta)
            activations += plain.nbytes // language.num_hidden_layers
        expert = experts // max(1, layers * (language.n_routed_experts or 0))
        experts_per_token = layers * (language.num_experts_per_tok or 0)
        always = sum(count for part, count in parts.items() if part in READ_ALWAYS)
        return cls(
            weights=name,
            experts=experts,
            other_weights=sum(parts.values()) - experts,
            expert=expert,
            experts_per_token=experts_per_token,
            read_per_token=always + expert * experts_per_token,
            cache=rows.nbytes,
            activations=activations,
            reuse=reuse,
        )

    @property
    def weight_bytes(self) -> int:
        return self.experts + self.other_weights

    @property
    def total(self) -> int:
        return self.weight_bytes + self.cache + self.activations + self.reuse + self.program

    @property
    def least(self) -> int:
        """The least memory that paging needs: everything but the experts, plus the experts of one token."""
        return self.total - self.experts + self.expert * self.experts_per_token

    def experts_within(self, memory: int) -> int:
        """Return how many bytes of experts can be held if the total must not exceed `memory`."""
        return min(self.experts, memory - (self.total - self.experts))

    def paged_per_token(self, memory: int) -> int:
        """Return the bytes of experts that must be paged in per token, if all experts are chosen equally often."""
        absent = 1 - self.experts_within(memory) / max(1, self.experts)
        return round(absent * self.expert * self.experts_per_token)

    def verdict(self, memory: MachineMemory) -> Verdict:
        """Return whether and how this model fits into the machine's memory."""
        if self.total <= memory.available:
            return "fits"
        if self.weights not in DTYPES and self.least <= memory.available:
            return "paged"
        return "crowded" if self.total <= memory.total else "too large"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "weight_bytes": self.weight_bytes, "total": self.total, "least": self.least}


def name_of(scheme: Scheme) -> str:
    return next((name for name, known in SCHEMES.items() if known == scheme), "quantized")


def recommend(plans: Sequence[MemoryPlan], memory: MachineMemory, torch_dtype: str) -> MemoryPlan | None:
    """Return the most precise plan that fits completely, otherwise the smallest that fits with paging, otherwise None.

    `plans` are ordered from the most precise to the smallest. float32 is recommended only if it is the checkpoint's
    own type.
    """
    offered = [plan for plan in plans if plan.weights != "float32" or torch_dtype == "float32"]
    whole = [plan for plan in offered if plan.verdict(memory) == "fits"]
    paged = [plan for plan in offered if plan.verdict(memory) == "paged"]
    return next(iter(whole), None) or next(reversed(paged), None)


def tiles_per_pass(config: ModelConfig, device: torch.device, tile_px: int | None = None) -> int:
    """Return how many tiles of `tile_px` pixels a side are encoded at once; None is the encoder's own tile size."""
    if device.type != "cpu":
        return TILES_PER_PASS
    num_patches = config.vision_config.num_patches(tile_px or config.vision_config.image_size)
    return min(TILES_PER_PASS, max(1, PATCHES_PER_PASS_ON_CPU // num_patches))


def encoder_bytes(config: ModelConfig, itemsize: int) -> int:
    """Return the bytes of activations of an encoder pass on a CPU: a block's MLP with its input, and the pixels.

    For DeepEncoder these are SAM's MLP and the attention biases of one block of queries.
    """
    vision, scores = config.vision_config, 0
    if isinstance(vision, DeepEncoderConfig):
        width, mlp_width = vision.sam.width, vision.sam.width * vision.sam.mlp_ratio
        scores = 2 * SCORES_AT_ONCE * itemsize
    else:
        width, mlp_width = vision.width, vision.mlp_width
    per_patch = (2 * width + 2 * mlp_width) * itemsize
    pixels = 3 * vision.image_size**2 * (4 + itemsize)
    num_tiles = tiles_per_pass(config, torch.device("cpu"))
    return num_tiles * (vision.num_patches(vision.image_size) * per_patch + pixels) + scores


def prefill_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Return the bytes of activations of an unchunked prefill: the residual stream, plus experts or attention.

    Experts and attention do not run at the same time, so the larger of the two counts.
    """
    language = config.language_config
    width, heads = language.hidden_size, language.num_attention_heads
    # Rows sorted by expert, their outputs, the outputs in token order, and the float32 products that are summed.
    routed = (language.num_experts_per_tok or 0) * width * (3 * itemsize + 4)
    if language.use_mla:
        head = language.qk_nope_head_dim + language.qk_rope_head_dim
        attention = heads * itemsize * (6 * head + language.qk_nope_head_dim + language.v_head_dim)
    else:
        attention = 8 * width * itemsize
    stream = 4 * width * itemsize
    return tokens * (stream + max(routed, attention))
