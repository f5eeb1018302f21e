"""What a model will need in memory before any of it is loaded: weights to the byte, cache, activations, and
what is kept between requests.

Weights and cache are counted on the meta device and exact. Activations are those of the most demanding pass, estimated
by formula: the encoder on a pass of tiles on a CPU, or a prompt that fills the context, read at once (in chunks it
needs less). All in bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from vl2.config import ModelConfig
from vl2.dtypes import DTYPES
from vl2.infer.image_tokens import DEFAULT_ENCODER_BYTES, tiles_per_pass
from vl2.infer.prefix_cache import DEFAULT_PREFIX_BYTES
from vl2.model import Cache
from vl2.quant.scheme import SCHEME_NAMES, SCHEMES, Scheme, scheme_named
from vl2.quant.write import empty_quantized
from vl2.weights.load import build_empty, materialize
from vl2.weights.machine_memory import MachineMemory

FORMATS = ("float32", "bfloat16", *SCHEME_NAMES)
# "crowded": only where other programs give up memory; "paged": from quantised files, with some experts absent.
Verdict = Literal["fits", "paged", "crowded", "too large"]
PROGRAM_BYTES = 400_000_000  # Python, PyTorch and its thread pools, measured on Linux
# Parts of the names in the state dict, the first that fits.
PARTS = {
    "attention pool (unused)": ("vision.attn_pool.",),
    "vision encoder": ("vision.",),
    "projector": ("projector.", "image_newline", "view_separator"),
    "token table": (".embed_tokens.",),
    "routed experts": (".mlp.experts.",),
    "shared experts": (".shared_experts.",),
    "attention": (".self_attn.",),
    "routers and norms": (".gate.", "norm."),
    "dense layers": (".mlp.",),
    "head": (".lm_head.",),
}
EXPERTS = "routed experts"
UNREAD = ("token table", "attention pool (unused)")  # of the table one row, of the pool nothing
READ_ALWAYS = ("shared experts", "attention", "routers and norms", "dense layers", "head")


def weight_bytes(config: ModelConfig, weights: str | Scheme, dtype: torch.dtype | None = None) -> dict[str, int]:
    """Return the bytes of each part of a model whose weights are held in one of the formats, or by a scheme.

    `dtype` is of what a scheme leaves as it is, None for the checkpoint's own.
    """
    if isinstance(weights, str) and weights in DTYPES:
        model = build_empty(config)
        materialize(model, DTYPES[weights], torch.device("meta"))
    else:
        scheme = scheme_named(weights) if isinstance(weights, str) else weights
        model = empty_quantized(config, scheme, dtype or getattr(torch, config.torch_dtype))
    return _by_part({name: tensor.nbytes for name, tensor in model.state_dict().items()})


def parameters(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each part."""
    return _by_part({name: tensor.numel() for name, tensor in build_empty(config).state_dict().items()})


def count_parameters(config: ModelConfig) -> int:
    """Return the number of parameters, however they are held."""
    return sum(parameter.numel() for parameter in build_empty(config).parameters())


def share_at_work(config: ModelConfig, part: str) -> float:
    """Return how much of a part works for one token of an image and its text."""
    language = config.language_config
    if part == EXPERTS:
        return (language.num_experts_per_tok or 0) / (language.n_routed_experts or 1)
    return 0.0 if part in UNREAD else 1.0


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that a model takes while it answers."""

    weights: str  # one of FORMATS, or "quantised" for another scheme
    experts: int  # the routed ones, which can be paged where they are mapped from quantised files
    other_weights: int
    expert: int  # one of them
    experts_per_token: int  # over all layers
    read_per_token: int  # of the language model, for one token by itself
    cache: int
    activations: int
    reuse: int  # kept of images and prompts, at most
    program: int = PROGRAM_BYTES

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        weights: str | Scheme,
        context: int,
        *,
        dtype: torch.dtype | None = None,
        cache_tokens: int | None = None,
        reuse: int = DEFAULT_ENCODER_BYTES + DEFAULT_PREFIX_BYTES,
    ) -> MemoryPlan:
        """Plan one conversation that fills the context; `cache_tokens` for all positions that several take together.

        `dtype` is of what is not quantised, None for the checkpoint's own. A plain format is its own type.
        """
        name = weights if isinstance(weights, str) else name_of(weights)
        dtype = DTYPES.get(name, dtype or getattr(torch, config.torch_dtype))
        parts = weight_bytes(config, weights, dtype)
        language = config.language_config
        layers = sum(language.is_moe_layer(i) for i in range(language.num_hidden_layers))
        experts = parts.get(EXPERTS, 0)
        cache = Cache.allocate(language, 1, cache_tokens or context, dtype=dtype, device=torch.device("meta"))
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
            cache=cache.nbytes,
            activations=max(encoder_bytes(config, dtype.itemsize), prefill_bytes(config, context, dtype.itemsize)),
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
        """What paging cannot go below: everything but the experts, and of these the ones of one token."""
        return self.total - self.experts + self.expert * self.experts_per_token

    def experts_within(self, memory: int) -> int:
        """Return how many bytes of experts can be held when everything together keeps within `memory`."""
        return min(self.experts, memory - (self.total - self.experts))

    def paged_per_token(self, memory: int) -> int:
        """Return the bytes of experts that a token finds absent, if all experts are chosen equally often."""
        absent = 1 - self.experts_within(memory) / max(1, self.experts)
        return round(absent * self.expert * self.experts_per_token)

    def verdict(self, memory: MachineMemory) -> Verdict:
        """Say whether this machine can hold it."""
        if self.total <= memory.available:
            return "fits"
        if self.weights not in DTYPES and self.least <= memory.available:
            return "paged"
        return "crowded" if self.total <= memory.total else "too large"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "weight_bytes": self.weight_bytes, "total": self.total, "least": self.least}


def name_of(scheme: Scheme) -> str:
    return next((name for name, known in SCHEMES.items() if known == scheme), "quantised")


def recommend(plans: Sequence[MemoryPlan], memory: MachineMemory, torch_dtype: str) -> MemoryPlan | None:
    """Return the most exact form that this machine holds whole, else the smallest that it can page, else none.

    `plans` go from the most exact to the smallest; float32 is advised only where the checkpoint's own type is that.
    """
    offered = [plan for plan in plans if plan.weights != "float32" or torch_dtype == "float32"]
    whole = [plan for plan in offered if plan.verdict(memory) == "fits"]
    paged = [plan for plan in offered if plan.verdict(memory) == "paged"]
    return next(iter(whole), None) or next(reversed(paged), None)


def encoder_bytes(config: ModelConfig, itemsize: int) -> int:
    """Return the activations of a pass of tiles on a CPU: the MLP of a block, with its input, and the pixels."""
    vision = config.vision_config
    per_patch = (2 * vision.width + 2 * vision.mlp_width) * itemsize
    pixels = 3 * vision.image_size**2 * (4 + itemsize)
    return tiles_per_pass(vision, torch.device("cpu")) * (vision.patches_per_side**2 * per_patch + pixels)


def prefill_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Return the activations of a prompt read at once: the stream, and the larger of experts and attention."""
    language = config.language_config
    width, heads = language.hidden_size, language.num_attention_heads
    # Rows sorted by expert, their outputs, these by token, and the float32 products that are summed.
    routed = (language.num_experts_per_tok or 0) * width * (3 * itemsize + 4)
    if language.use_mla:
        head = language.qk_nope_head_dim + language.qk_rope_head_dim
        attention = heads * itemsize * (6 * head + language.qk_nope_head_dim + language.v_head_dim)
    else:
        attention = 8 * width * itemsize
    stream = 4 * width * itemsize
    return tokens * (stream + max(routed, attention))


def _by_part(counts: dict[str, int]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in counts.items():
        part = next(part for part, marks in PARTS.items() if any(mark in name for mark in marks))
        total[part] += count
    return {part: total[part] for part in PARTS if total[part]}
