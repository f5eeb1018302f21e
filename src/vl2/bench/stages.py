"""The stages of a benchmark, and the lower bound of each stage's time from its memory traffic and arithmetic.

A pass reads every weight once; of the routed experts it reads those that are selected if tokens choose evenly. Reading
and arithmetic can overlap, so the lower bound is the longer of the two. One multiply-add is two operations. In a
quantized model the unquantized layers (routers and `kv_b_proj`) are counted as quantized, an error of at most 1/40.
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
from vl2.deep_encoder_config import DeepEncoderConfig
from vl2.errors import UserError
from vl2.grid import UNTILED
from vl2.model import VL2
from vl2.model.int8_cache import AS_MODEL, CacheForm, allocate_cache
from vl2.quant.formats import Kind
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantized_matmul import matmul_dtype
from vl2.train.flops import ForwardCost


@dataclass(frozen=True, kw_only=True)
class ModelBytes:
    """Bytes of the parts of a loaded model, in the types that it has in memory."""

    total: int
    copied: int  # part of the total that is not memory-mapped from the checkpoint's files
    encoder: int  # with the projector, without the attention pool
    dense: int  # language model without routed experts and token embedding: what every token reads
    experts: int  # all routed experts of all layers
    cache_per_token: int

    @classmethod
    def of(cls, model: VL2, cache: CacheForm = AS_MODEL) -> ModelBytes:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        sizes = [(name, tensor.nbytes) for name, tensor in tensors]

        def total(*parts: str, without: tuple[str, ...] = ()) -> int:
            return sum(
                size for name, size in sizes if name.startswith(parts) and not any(word in name for word in without)
            )

        everything, encoder = sum(size for _, size in sizes), total("vision.", "projector.", without=(".attn_pool.",))
        all_but_experts = total("language.", without=("embed_tokens", ".mlp.experts."))
        language = total("language.", without=("embed_tokens",))
        config = model.config.language_config
        row = allocate_cache(cache, config, 1, 1, dtype=model.dtype, device=model.device)
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
class ComputeTypes:
    """Names of the types in which a loaded model computes matrix products."""

    encoder: str  # linear layers of the encoder and the projector
    language: str  # linear layers of the language model in prefill
    rest: str  # attention scores, and linear layers for one or a few rows, where activations are not quantized

    @classmethod
    def of(cls, model: VL2) -> ComputeTypes:
        encoder, language = (
            matmul_dtype(_form(part), model.dtype, model.device) for part in (model.vision, model.language)
        )
        return cls(encoder=_name(encoder), language=_name(language), rest=_name(model.dtype))

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def _form(part: nn.Module) -> Kind | None:
    """Return the quantization of a part's weights, or None if they are not quantized."""
    return next((m.kind for m in part.modules() if isinstance(m, QuantizedLinear | QuantizedExperts)), None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """Memory traffic of one stage in bytes, and its operations in the groups of `ComputeTypes`."""

    read_bytes: float
    first_write_bytes: float = 0.0  # written to memory that is new to the process
    encoder: float = 0.0
    language: float = 0.0
    rest: float = 0.0

    @property
    def operations(self) -> float:
        return self.encoder + self.language + self.rest

    def min_seconds(self, machine: MachineLimits, types: ComputeTypes) -> float:
        """Return the lower bound of the stage's time on this machine."""
        parts = ((self.encoder, types.encoder), (self.language, types.language), (self.rest, types.rest))
        arithmetic = sum(operations / machine.operations_per_s(kind) for operations, kind in parts)
        reading, writing = (
            self.read_bytes / machine.read_bytes_per_s,
            self.first_write_bytes / machine.first_write_bytes_per_s,
        )
        return max(reading, writing, arithmetic)


def load_work(memory: ModelBytes) -> StageWork:
    return StageWork(read_bytes=memory.copied, first_write_bytes=memory.copied)


def encode_work(config: ModelConfig, memory: ModelBytes, tiles: int) -> StageWork:
    """Return the work of encoding tiles, or whole pages of the DeepSeek-OCR family."""
    cost = ForwardCost.of(config)
    if isinstance(config.vision_config, DeepEncoderConfig):
        return StageWork(
            read_bytes=memory.encoder, encoder=tiles * (cost.per_overview_vision + cost.per_overview_projector)
        )
    vision = config.siglip
    scores = 4.0 * vision.layers * vision.patches_per_side**4 * vision.width
    weights = cost.per_tile_vision - scores + cost.per_tile_projector
    return StageWork(read_bytes=memory.encoder, encoder=tiles * weights, rest=tiles * scores)


def prefill_work(config: ModelConfig, memory: ModelBytes, tokens: int) -> StageWork:
    """Return the work of a prompt's prefill with the logits of its last position.

    For the earlier positions the last layer computes keys and values only.
    """
    cost, language = ForwardCost.of(config), config.language_config
    layers, pairs = language.num_hidden_layers, tokens * (tokens + 1) / 2
    weights = (cost.per_token - cost.per_token_in_end) * (tokens - 1) + cost.per_token
    scores = cost.per_pair * (pairs * (layers - 1) + tokens) / layers
    is_moe = [language.is_moe_layer(layer) for layer in range(layers)]
    read = sum(visited_share(config, 1 if layer == layers - 1 else tokens) for layer in range(layers) if is_moe[layer])
    read_bytes = memory.dense + memory.experts * read / max(1, sum(is_moe))
    return StageWork(read_bytes=read_bytes, language=weights, rest=scores + cost.per_logit)


def decode_work(config: ModelConfig, memory: ModelBytes, *, batch: int, context: int, steps: int) -> StageWork:
    """Return the work of `steps` decoding steps for `batch` rows that start with `context` tokens each."""
    cost = ForwardCost.of(config)
    weights = memory.dense + memory.experts * visited_share(config, batch)
    seen = context + steps / 2  # mean number of cached positions that a step attends to
    return StageWork(
        read_bytes=steps * (weights + batch * seen * memory.cache_per_token),
        rest=steps * batch * (cost.per_token + cost.per_logit + cost.per_pair * seen),
    )


def visited_share(config: ModelConfig, tokens: int) -> float:
    """Return the expected share of experts that are selected if each token chooses K of E at random."""
    language = config.language_config
    if not language.n_routed_experts:
        return 0.0
    chosen: Any = (language.num_experts_per_tok or 0) / language.n_routed_experts
    return float(1 - (1 - chosen) ** tokens)


Unit = Literal["s", "s/tile", "s/page", "pages/min", "tokens/s", "GB"]


@dataclass(frozen=True, kw_only=True)
class BenchStage:
    """One measurement. A run gives seconds (bytes for memory), which `figure` converts to the unit."""

    name: str
    group: str  # name for --only
    task: dict[str, Any]
    unit: Unit
    amount: float = 1.0  # tiles or tokens in a run
    work: Callable[[ModelBytes], StageWork] | None = None  # None: no lower bound is known
    key: str = "seconds"  # of the number in the target's answer
    parts: tuple[BenchStage, ...] = ()  # further figures of the same run, each under a key of its own

    def figure(self, run: float) -> float:
        """Convert a run's seconds or bytes to the stage's unit."""
        if self.unit == "tokens/s":
            return self.amount / run
        if self.unit == "pages/min":
            return 60 * self.amount / run
        return run / 1e9 if self.unit == "GB" else run / self.amount


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the measured tasks."""

    tiles: int = 5
    prompt: int = 1000  # tokens of prefill
    short: int = 32  # tokens of context for decoding
    long: int = 1050
    steps: int = 24  # decoding steps
    answer: int = 300  # tokens of the answer about a page, for the DeepSeek-OCR family
    rounds: int = 3

    @classmethod
    def quick(cls) -> Sizes:
        return cls(tiles=1, prompt=256, short=16, long=300, steps=4, answer=8, rounds=1)


BATCHES = (1, 4, 16)
GROUPS = ("encode", "prefill", "decode", "first-token", "page", "memory")  # load is always measured


def make_stages(
    config: ModelConfig, sizes: Sizes, only: Sequence[str] = (), *, image_scale: float = 1.0
) -> list[BenchStage]:
    """Return the stages for a model in the order of their runs. `image_scale` is that of its processor.

    Raise UserError for an unknown group in `only`.
    """
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
            work=lambda memory: decode_work(config, memory, batch=batch, context=length, steps=steps),
        )

    is_reader = isinstance(config.vision_config, DeepEncoderConfig)
    # DeepSeek-VL2 cuts the image into 2 x 2 tiles, also with an image scale; a page in mode "base" is one view.
    side = config.vision_config.image_size if is_reader else int(config.vision_config.image_size * 2 / image_scale)
    shown = {"side": side}
    view = "page" if is_reader else "tile"
    whole_page = BenchStage(
        name=f"page of {side} x {side}, {sizes.answer} tokens of answer",
        group="page",
        task={"do": "page", **shown, "tokens": sizes.answer},
        unit="pages/min",
        parts=(
            BenchStage(name="  until its first token", group="page", task={}, unit="s", key="first_token_seconds"),
            BenchStage(
                name="  its other tokens",
                group="page",
                task={},
                unit="tokens/s",
                amount=sizes.answer - 1,
                key="answer_seconds",
            ),
        ),
    )
    stages = [
        BenchStage(
            name=f"encode, {sizes.tiles} {view}s",
            group="encode",
            task={"do": "encode", "tiles": sizes.tiles},
            unit="s/page" if is_reader else "s/tile",
            amount=sizes.tiles,
            work=lambda memory: encode_work(config, memory, sizes.tiles),
        ),
        BenchStage(
            name=f"prefill, {sizes.prompt} tokens",
            group="prefill",
            task={"do": "prefill", "tokens": sizes.prompt},
            unit="s",
            work=lambda memory: prefill_work(config, memory, sizes.prompt),
        ),
        *(decode(batch, sizes.short, sizes.steps) for batch in BATCHES),
        decode(1, sizes.long, sizes.steps),
        BenchStage(
            name=f"first token, image of {side} x {side}",
            group="first-token",
            task={"do": "first_token", **shown},
            unit="s",
            work=lambda memory: _image_work(config, memory),
        ),
        BenchStage(
            name="another question about it", group="first-token", task={"do": "second_question", **shown}, unit="s"
        ),
        *([whole_page] if is_reader else []),
        BenchStage(name="peak memory", group="memory", task={"do": "memory"}, unit="GB", key="bytes"),
    ]
    return [stage for stage in stages if not only or stage.group in only]


def load_stage(task: dict[str, Any]) -> BenchStage:
    return BenchStage(name="load", group="load", task=task, unit="s", work=load_work)


def _image_work(config: ModelConfig, memory: ModelBytes) -> StageWork:
    """Return the work until the first token, for an image with a 2 x 2 grid of tiles and a question of 12 tokens.

    For the DeepSeek-OCR family it is that of a page in mode "base".
    """
    side = config.tokens_per_side
    layout, is_reader = config.layout(side, side), isinstance(config.vision_config, DeepEncoderConfig)
    grid = UNTILED if is_reader else (2, 2)
    encoder = encode_work(config, memory, layout.num_tiles(grid) + layout.num_overviews(grid))
    prompt = prefill_work(config, memory, layout.num_tokens(grid) + 12)
    return StageWork(
        read_bytes=encoder.read_bytes + prompt.read_bytes,
        encoder=encoder.encoder,
        language=prompt.language,
        rest=encoder.rest + prompt.rest,
    )
