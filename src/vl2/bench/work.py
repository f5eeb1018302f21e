"""What a stage cannot do without: bytes to read and operations to do, and the least time that this takes.

Weights are read once in a pass, of routed experts those that are visited when tokens choose evenly. Reading and
arithmetic can go on side by side, so the least time is the longer of the two. One multiply-add is two operations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vl2.bench.machine import MachineLimits
from vl2.config import ModelConfig
from vl2.model import VL2, Cache
from vl2.train.flops import ForwardCost


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """The memory of a loaded model's parts, as they are held."""

    total: int
    encoder: int  # with the projector, without the attention pool
    dense: int  # of the language model what every token reads: all but the experts and the token table
    experts: int  # all routed experts of all layers
    cache_per_token: int

    @classmethod
    def of(cls, model: VL2) -> Bytes:
        held = [(name, t.numel() * t.element_size()) for name, t in [*model.named_parameters(), *model.named_buffers()]]

        def total(*parts: str, without: tuple[str, ...] = ()) -> int:
            return sum(
                size for name, size in held if name.startswith(parts) and not any(word in name for word in without)
            )

        everything, encoder = sum(size for _, size in held), total("vision.", "projector.", without=(".attn_pool.",))
        all_but_experts = total("language.", without=("embed_tokens", ".mlp.experts."))
        language = total("language.", without=("embed_tokens",))
        row = Cache.allocate(model.config.language_config, 1, 1, dtype=model.dtype, device=model.device)
        return cls(
            total=everything,
            encoder=encoder,
            dense=all_but_experts,
            experts=language - all_but_experts,
            cache_per_token=row.nbytes,
        )

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Bytes and operations of one stage."""

    read_bytes: float
    operations: float

    def least_seconds(self, machine: MachineLimits, compute: str) -> float:
        """Return the least time on this machine, arithmetic in the type `compute`."""
        return max(self.read_bytes / machine.read_bytes_per_s, self.operations / machine.operations_per_s(compute))


def encode_work(config: ModelConfig, held: Bytes, tiles: int) -> Work:
    cost = ForwardCost.of(config)
    return Work(read_bytes=held.encoder, operations=tiles * (cost.per_tile_vision + cost.per_tile_projector))


def prefill_work(config: ModelConfig, held: Bytes, tokens: int) -> Work:
    """The pass of a whole prompt, with the logits of its last position: the last layer keeps no other's state."""
    cost, language = ForwardCost.of(config), config.language_config
    layers, pairs = language.num_hidden_layers, tokens * (tokens + 1) / 2
    operations = cost.per_token * tokens - cost.per_token_in_end * (tokens - 1) + cost.per_logit
    operations += cost.per_pair * (pairs * (layers - 1) + tokens) / layers
    is_moe = [language.is_moe_layer(layer) for layer in range(layers)]
    read = sum(visited_share(config, 1 if layer == layers - 1 else tokens) for layer in range(layers) if is_moe[layer])
    return Work(read_bytes=held.dense + held.experts * read / max(1, sum(is_moe)), operations=operations)


def decode_work(config: ModelConfig, held: Bytes, *, batch: int, context: int, steps: int) -> Work:
    """Steps of one token for each of `batch` rows that hold `context` tokens at the start."""
    cost = ForwardCost.of(config)
    weights = held.dense + held.experts * visited_share(config, batch)
    seen = context + steps / 2  # positions that a step looks back on, on average
    return Work(
        read_bytes=steps * (weights + batch * seen * held.cache_per_token),
        operations=steps * batch * (cost.per_token + cost.per_logit + cost.per_pair * seen),
    )


def visited_share(config: ModelConfig, tokens: int) -> float:
    """Return the share of the experts that tokens visit which choose K of E evenly and by themselves."""
    language = config.language_config
    if not language.n_routed_experts:
        return 0.0
    chosen: Any = (language.num_experts_per_tok or 0) / language.n_routed_experts
    return float(1 - (1 - chosen) ** tokens)
