"""What is measured, in which order, how each figure is told, and what a stage cannot do without.

The least time of a stage follows from its bytes and operations. Weights are read once in a pass, of routed experts
those that are visited when tokens choose evenly. Reading and arithmetic can go on side by side, so the least time is
the longer of the two. One multiply-add is two operations. What stays plain among quantized layers, routers and
`kv_b_proj`, is counted with them: a fortieth at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from vl2.bench.machine_limits import MachineLimits
from vl2.checkpoint.pages import bytes_in_files
from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.model import VL2, Cache
from vl2.quant.formats import Kind
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantized_matmul import matmul_dtype
from vl2.train.flops import ForwardCost


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """The memory of a loaded model's parts, as they are held."""

    total: int
    copied: int  # of all, what does not lie in the checkpoint's files
    encoder: int  # with the projector, without the attention pool
    dense: int  # of the language model what every token reads: all but the experts and the token table
    experts: int  # all routed experts of all layers
    cache_per_token: int

    @classmethod
    def of(cls, model: VL2) -> Bytes:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        held = [(name, tensor.nbytes) for name, tensor in tensors]

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
            copied=everything - bytes_in_files(tensor for _, tensor in tensors),
            encoder=encoder,
            dense=all_but_experts,
            experts=language - all_but_experts,
            cache_per_token=row.nbytes,
        )

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Types:
    """In which types a loaded model multiplies, by name."""

    encoder: str  # rows of the encoder and the projector by their weights
    language: str  # rows of a prompt by weights of the language model
    rest: str  # scores of attention, and what is done for one row or a few, whose numbers keep their 16 bits

    @classmethod
    def of(cls, model: VL2) -> Types:
        encoder, language = (
            matmul_dtype(_form(part), model.dtype, model.device) for part in (model.vision, model.language)
        )
        return cls(encoder=_name(encoder), language=_name(language), rest=_name(model.dtype))

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def _form(part: nn.Module) -> Kind | None:
    """Return the form of a part's weights, None for plain ones."""
    return next((m.kind for m in part.modules() if isinstance(m, QuantizedLinear | QuantizedExperts)), None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Bytes of one stage, and its operations by what they are done with, as in `Types`."""

    read_bytes: float
    new_bytes: float = 0.0  # of memory that is written for the first time
    encoder: float = 0.0
    language: float = 0.0
    rest: float = 0.0

    @property
    def operations(self) -> float:
        return self.encoder + self.language + self.rest

    def least_seconds(self, machine: MachineLimits, types: Types) -> float:
        """Return the least time on this machine, each operation at the limit of its type."""
        parts = ((self.encoder, types.encoder), (self.language, types.language), (self.rest, types.rest))
        arithmetic = sum(operations / machine.operations_per_s(kind) for operations, kind in parts)
        memory = self.read_bytes / machine.read_bytes_per_s, self.new_bytes / machine.new_bytes_per_s
        return max(*memory, arithmetic)


def load_work(held: Bytes) -> Work:
    return Work(read_bytes=held.copied, new_bytes=held.copied)


def encode_work(config: ModelConfig, held: Bytes, tiles: int) -> Work:
    cost, vision = ForwardCost.of(config), config.siglip
    scores = 4.0 * vision.layers * vision.patches_per_side**4 * vision.width
    weights = cost.per_tile_vision - scores + cost.per_tile_projector
    return Work(read_bytes=held.encoder, encoder=tiles * weights, rest=tiles * scores)


def prefill_work(config: ModelConfig, held: Bytes, tokens: int) -> Work:
    """The pass of a whole prompt, with the logits of its last position: the last layer keeps no other's state."""
    cost, language = ForwardCost.of(config), config.language_config
    layers, pairs = language.num_hidden_layers, tokens * (tokens + 1) / 2
    weights = (cost.per_token - cost.per_token_in_end) * (tokens - 1) + cost.per_token
    scores = cost.per_pair * (pairs * (layers - 1) + tokens) / layers
    is_moe = [language.is_moe_layer(layer) for layer in range(layers)]
    read = sum(visited_share(config, 1 if layer == layers - 1 else tokens) for layer in range(layers) if is_moe[layer])
    read_bytes = held.dense + held.experts * read / max(1, sum(is_moe))
    return Work(read_bytes=read_bytes, language=weights, rest=scores + cost.per_logit)


def decode_work(config: ModelConfig, held: Bytes, *, batch: int, context: int, steps: int) -> Work:
    """Steps of one token for each of `batch` rows that hold `context` tokens at the start."""
    cost = ForwardCost.of(config)
    weights = held.dense + held.experts * visited_share(config, batch)
    seen = context + steps / 2  # positions that a step looks back on, on average
    return Work(
        read_bytes=steps * (weights + batch * seen * held.cache_per_token),
        rest=steps * batch * (cost.per_token + cost.per_logit + cost.per_pair * seen),
    )


def visited_share(config: ModelConfig, tokens: int) -> float:
    """Return the share of the experts that tokens visit which choose K of E evenly and by themselves."""
    language = config.language_config
    if not language.n_routed_experts:
        return 0.0
    chosen: Any = (language.num_experts_per_tok or 0) / language.n_routed_experts
    return float(1 - (1 - chosen) ** tokens)


Unit = Literal["s", "s/tile", "tokens/s", "GB"]


@dataclass(frozen=True, kw_only=True)
class BenchStage:
    """One measured thing. Its runs are seconds (bytes for memory); `amount` turns them into the unit."""

    name: str
    group: str  # what --only names
    task: dict[str, Any]
    unit: Unit
    amount: float = 1.0  # tiles or tokens in a run
    work: Callable[[Bytes], Work] | None = None  # None: no limit is known

    def figure(self, run: float) -> float:
        """Return a run in the stage's unit."""
        if self.unit == "tokens/s":
            return self.amount / run
        return run / 1e9 if self.unit == "GB" else run / self.amount


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    tiles: int = 5
    prompt: int = 1000
    short: int = 32  # tokens of context
    long: int = 1050
    steps: int = 24
    rounds: int = 3

    @classmethod
    def quick(cls) -> Sizes:
        return cls(tiles=1, prompt=256, short=16, long=300, steps=4, rounds=1)


BATCHES = (1, 4, 16)
GROUPS = ("encode", "prefill", "decode", "first-token", "memory")  # load is always measured


def make_stages(config: ModelConfig, sizes: Sizes, only: Sequence[str] = ()) -> list[BenchStage]:
    """Return the stages of a model, in the order in which they are run. UserError for a group that there is not."""
    for group in only:
        if group not in GROUPS:
            raise UserError(f"there is no stage {group}: the stages are {', '.join(GROUPS)}")
    context = config.language_config.max_position_embeddings
    longest = max(sizes.prompt, sizes.long + sizes.steps)
    if longest > context:
        raise UserError(f"{longest} tokens do not fit into this model's context of {context}")

    def decode(batch: int, length: int, steps: int) -> BenchStage:
        return BenchStage(
            name=f"decode, batch {batch}, {length} tokens before",
            group="decode",
            task={"do": "decode", "batch": batch, "context": length, "steps": steps},
            unit="tokens/s",
            amount=batch * steps,
            work=lambda held: decode_work(config, held, batch=batch, context=length, steps=steps),
        )

    side = 2 * config.siglip.image_size
    shown = {"side": side}
    stages = [
        BenchStage(
            name=f"encode, {sizes.tiles} tiles",
            group="encode",
            task={"do": "encode", "tiles": sizes.tiles},
            unit="s/tile",
            amount=sizes.tiles,
            work=lambda held: encode_work(config, held, sizes.tiles),
        ),
        BenchStage(
            name=f"prefill, {sizes.prompt} tokens",
            group="prefill",
            task={"do": "prefill", "tokens": sizes.prompt},
            unit="s",
            work=lambda held: prefill_work(config, held, sizes.prompt),
        ),
        *(decode(batch, sizes.short, sizes.steps) for batch in BATCHES),
        decode(1, sizes.long, sizes.steps),
        BenchStage(
            name=f"first token, image of {side} x {side}",
            group="first-token",
            task={"do": "first_token", **shown},
            unit="s",
            work=lambda held: _image_work(config, held),
        ),
        BenchStage(
            name="another question about it", group="first-token", task={"do": "second_question", **shown}, unit="s"
        ),
        BenchStage(name="peak memory", group="memory", task={"do": "memory"}, unit="GB"),
    ]
    return [stage for stage in stages if not only or stage.group in only]


def load_stage(task: dict[str, Any]) -> BenchStage:
    return BenchStage(name="load", group="load", task=task, unit="s", work=load_work)


def _image_work(config: ModelConfig, held: Bytes) -> Work:
    """A 2 x 2 grid and a dozen words."""
    side = config.tokens_per_side
    encoder = encode_work(config, held, 5)
    prompt = prefill_work(config, held, side * (side + 1) + 1 + 2 * side * (2 * side + 1) + 12)
    return Work(
        read_bytes=encoder.read_bytes + prompt.read_bytes,
        encoder=encoder.encoder,
        language=prompt.language,
        rest=encoder.rest + prompt.rest,
    )
