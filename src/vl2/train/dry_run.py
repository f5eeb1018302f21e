"""Estimate a recipe without training: the trained parameters, number of steps, memory and time.

Everything is computed on the meta device or by formula, so any machine can plan the largest size. The data are read if
they are available; otherwise sequences are assumed to be full, with the most tiles that a pack may have.

The activation memory is that of one pack, because packs run one after another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, get_args

from vl2.config import PRESETS, ModelConfig, preset
from vl2.data.pack_plan import PackPlan
from vl2.deep_encoder_config import DeepEncoderConfig, QueryEncoderConfig
from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.process.page_views import PAGE_RULES
from vl2.progress import format_time
from vl2.train.activations import block_values, layer_values
from vl2.train.adapter import put_adapter
from vl2.train.flops import ForwardCost, measure_rate, step_flops
from vl2.train.loss import CHUNK
from vl2.train.parts import check_trained, freeze, part_of, still_parts
from vl2.train.prepare import fill_of, find_model, make_plan, model_config, num_steps, open_stores, plan_options
from vl2.train.ranks import ONE, find_device
from vl2.train.recipe import EncoderRecompute, ModelOptions, Recipe
from vl2.train.size import gradient_bytes, size_of
from vl2.train.stage import Part

ASSUMED_MFU = 0.4  # the fraction of the rate of a large matrix product that training reaches
_SAMPLES = 16  # steps over which tokens and tiles are averaged


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """The number of parameters of one part of the model."""

    trained: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of one rank, in bytes."""

    weights: int
    gradients: int
    optimizer: int  # moments, and masters if they are not the weights themselves
    activations: int
    logits: int  # of one chunk, with their gradients

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The estimates for a recipe."""

    stage: str
    model: str
    parts: dict[str, PartSize]
    num_steps: int
    batch_size: int
    tokens_per_step: float
    tiles_per_step: float
    pack_fill: float | None  # share of the places of packs that hold tokens; None without data or packing
    fill_warning: str  # what to change where packs are not full
    is_measured: bool  # whether tokens and tiles come from the recipe's data or are assumed
    note: str  # the reason why the data could not be read
    memory: Memory
    flops_per_step: float
    rate: float  # operations per second of one device
    seconds: float  # on one device

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total}}


def plan_run(recipe: Recipe, *, rate: float | None = None) -> PlannedRun:
    """Estimate a run. `rate` is the operations per second of one device; None measures this machine."""
    config = _shape(recipe.model)
    with shapes_only():
        model = VL2(config)
    if recipe.adapter.is_used:
        put_adapter(model, recipe.adapter)
    freeze(model, recipe.stage)
    check_trained(model, recipe.stage)
    plan, note = _try_plan(recipe)
    tokens, tiles, lengths, trained = _step_contents(recipe, config, plan)
    flops = step_flops(
        ForwardCost.of(config),
        still_parts(model),
        lengths=lengths,
        num_trained=trained,
        **_views_of_step(config, tiles),
        trains_weights=not recipe.adapter.is_used,
    )
    rate = rate or measure_rate(find_device(recipe.engine.device), DTYPES[recipe.engine.compute])
    steps = num_steps(recipe.stage, plan)
    fill = fill_of(plan) if plan is not None and recipe.stage.is_packed else None
    return PlannedRun(
        stage=recipe.stage.name,
        model=recipe.model.name,
        parts=part_sizes(model),
        num_steps=steps,
        batch_size=recipe.stage.batch_size,
        tokens_per_step=tokens,
        tiles_per_step=tiles,
        pack_fill=fill.fill if fill is not None else None,
        fill_warning=(fill.warning or "") if fill is not None else "",
        is_measured=plan is not None,
        note=note,
        memory=expected_memory(model, recipe, most_tiles=_most_tiles(recipe, config, plan)),
        flops_per_step=flops,
        rate=rate,
        seconds=steps * flops / (rate * ASSUMED_MFU),
    )


def _is_local(options: ModelOptions) -> bool:
    """Return whether a model's configuration is available without a download."""
    return options.name in PRESETS or Path(options.name).is_dir()


def _shape(options: ModelOptions) -> ModelConfig:
    if _is_local(options):
        return model_config(options)
    if not options.preset:
        raise UserError(f"the model {options.name} is not here: give the size to plan for with --model.preset")
    return preset(options.preset)


def part_sizes(model: VL2) -> dict[str, PartSize]:
    """Count the parameters of every part of a model on which `freeze` has been called."""
    sizes = {part: [0, 0] for part in get_args(Part)}
    for name, parameter in model.named_parameters():
        sizes[part_of(name)][0 if parameter.requires_grad else 1] += parameter.numel()
    return {part: PartSize(trained=trained, frozen=frozen) for part, (trained, frozen) in sizes.items()}


def expected_memory(model: VL2, recipe: Recipe, *, most_tiles: int) -> Memory:
    """Return the memory of training on one rank; for a sharded model, of all ranks together.

    Activations and logits are those of one rank in both cases.
    """
    stage, config, dtype = recipe.stage, model.config, DTYPES[recipe.engine.compute]
    # Routers are always float32, but too small to count.
    size = size_of(model, stage, recipe.adapter, dtype, is_sharded=recipe.engine.parallel == "sharded")
    gradients = gradient_bytes(stage) * size.num_trained
    return Memory(
        weights=size.weight_bytes,
        gradients=gradients,
        optimizer=size.optimizer_bytes - gradients,
        activations=activation_bytes(
            config,
            still_parts(model),
            num_tokens=stage.seq_len,
            num_tiles=most_tiles,
            value_bytes=dtype.itemsize,
            recomputes_layers=recipe.engine.activation_checkpointing,
            encoder=recipe.engine.recomputed_encoder,
        ),
        logits=2 * 4 * min(CHUNK, stage.seq_len) * config.language_config.vocab_size,
    )


def activation_bytes(
    config: ModelConfig,
    still: Collection[Part],
    *,
    num_tokens: int,
    num_tiles: int,
    value_bytes: int,
    recomputes_layers: bool = False,
    encoder: EncoderRecompute = "none",
) -> int:
    """Return the bytes of activations that one pack keeps for its backward pass.

    Nothing is trained in the parts `still`. The estimate counts the inputs of all matrix products and of the operations
    between them once. With recomputation by blocks, it is the inputs of all blocks and the inside of one. With
    recomputation of the whole encoder, the encoder's activations exist only after the rest has been freed.
    """
    language = config.language_config
    width = language.hidden_size
    layers = [layer_values(language, is_moe=language.is_moe_layer(i)) for i in range(language.num_hidden_layers)]
    seen = _deep_view_values(config) if isinstance(config.vision_config, DeepEncoderConfig) else _tile_values(config)
    runs_back_vision = "vision" not in still
    runs_back_projector = runs_back_vision or "projector" not in still
    adaptor = num_tiles * seen.projector
    inside = num_tiles * sum(seen.blocks) * runs_back_vision
    kept = num_tiles * (seen.block_inputs + max(seen.blocks)) * runs_back_vision if encoder == "blocks" else inside
    decoder = num_tokens * (len(layers) * width + max(layers) if recomputes_layers else sum(layers))
    rest = adaptor * runs_back_projector + decoder
    return value_bytes * (max(inside, rest) if encoder == "whole" else kept + rest)


@dataclass(frozen=True, kw_only=True)
class _ViewValues:
    """The numbers of values that one view keeps for the backward pass."""

    blocks: list[int]  # inside each block of the encoder
    block_inputs: int  # the inputs of all blocks together
    projector: int


def _tile_values(config: ModelConfig) -> _ViewValues:
    vision, projector = config.siglip, config.projector_config
    patches = vision.patches_per_side**2
    block = patches * block_values(vision)
    joined = projector.input_dim * projector.downsample_ratio**2
    return _ViewValues(
        blocks=[block] * vision.layers,
        block_inputs=patches * vision.layers * vision.width,
        projector=config.tokens_per_side**2 * (joined + 3 * projector.n_embed),
    )


def _deep_view_values(config: ModelConfig) -> _ViewValues:
    """Return the values of an overview of the DeepSeek-OCR family, which is larger than a crop.

    Of every score of SAM's attention its bias by position is kept.
    """
    vision: Any = config.vision_config
    sam, second, projector = vision.sam, vision.second, config.projector_config
    view_px = PAGE_RULES[config.kind].view_px["gundam"]
    side, tokens = view_px // sam.patch_size, vision.tokens_per_side(view_px) ** 2
    patches, padded = side**2, (-(-side // sam.window_size) * sam.window_size) ** 2
    blocks = []
    for index in range(sam.layers):
        is_global = index in sam.global_attn_indexes
        attended, keys = (patches, patches) if is_global else (padded, sam.window_size**2)
        scores = sam.heads * attended * keys
        blocks.append(attended * 6 * sam.width + scores + patches * (5 + 2 * sam.mlp_ratio) * sam.width)
    if isinstance(second, QueryEncoderConfig):
        width, read = second.dim, 2 * tokens
        block = 8 * width + 5 * second.kv_heads * second.head_dim + 4 * second.intermediate_size
    else:
        width, read = second.width, tokens + 1
        block = (11 + 3 * second.mlp_ratio) * width
    blocks += [read * block] * second.layers
    return _ViewValues(
        blocks=blocks,
        block_inputs=sam.layers * patches * sam.width + second.layers * read * width,
        projector=tokens * (projector.input_dim + projector.n_embed),
    )


def print_plan(planned: PlannedRun, file: TextIO) -> None:
    """Print the estimates as tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, highlight=False, width=None if file.isatty() else 100)
    console.print(f"stage {planned.stage} of {planned.model}", markup=False)
    parts = Table("part", "trained", "frozen", box=SIMPLE_HEAD)
    for name, size in planned.parts.items():
        parts.add_row(name, f"{size.trained:,}", f"{size.frozen:,}")
    everything = planned.parts.values()
    parts.add_row(
        "all", f"{sum(s.trained for s in everything):,}", f"{sum(s.frozen for s in everything):,}", style="bold"
    )
    length = Table("length", "", box=SIMPLE_HEAD)
    length.add_row("steps", f"{planned.num_steps:,}")
    length.add_row("sequences per step", f"{planned.batch_size:,}")
    length.add_row("tokens per step", f"{planned.tokens_per_step:,.0f}")
    length.add_row("tiles per step", f"{planned.tiles_per_step:,.0f}")
    if planned.pack_fill is not None:
        length.add_row("packs are full", f"{planned.pack_fill:.0%}")
    length.add_row("tokens in all", _count(planned.tokens_per_step * planned.num_steps))
    memory = Table("memory of one whole model", "", box=SIMPLE_HEAD)
    for name, num_bytes in asdict(planned.memory).items():
        memory.add_row(name, _bytes(num_bytes))
    memory.add_row("all", _bytes(planned.memory.total), style="bold")
    work = Table("time", "", box=SIMPLE_HEAD)
    work.add_row("operations per step", _count(planned.flops_per_step))
    work.add_row("rate of a device", f"{_count(planned.rate)} per second")
    work.add_row(f"one device at {ASSUMED_MFU:.0%} of it", format_time(planned.seconds), style="bold")
    for table in (parts, length, memory, work):
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)
    if planned.fill_warning:
        console.print(f"Warning: {planned.fill_warning}.", markup=False)
    if not planned.is_measured:
        console.print(f"Tokens and tiles are upper bounds: {planned.note}.", markup=False)


def _views_of_step(config: ModelConfig, views: float) -> dict[str, int]:
    """Return a step's views by kind. The plan does not say which views of DeepSeek-OCR are crops, so all count as
    overviews, which cost more."""
    is_deep = isinstance(config.vision_config, DeepEncoderConfig)
    return {"num_tiles": 0, "num_overviews": round(views)} if is_deep else {"num_tiles": round(views)}


def _try_plan(recipe: Recipe) -> tuple[PackPlan | None, str]:
    """Return the pack plan of the recipe's data, or None and the reason why it cannot be made."""
    if not _is_local(recipe.model):
        return None, f"the tokenizer of {recipe.model.name} is not here"
    try:
        processor = find_model(recipe.model).processor()
        stores = open_stores(recipe)
        return make_plan(recipe, stores, processor, folder=None, ranks=ONE, say=lambda text: None), ""
    except UserError as error:
        return None, str(error)


def _step_contents(recipe: Recipe, config: ModelConfig, plan: PackPlan | None) -> tuple[float, float, list[float], int]:
    """Return the mean numbers of tokens and tiles of a step, its document lengths, and its trained tokens."""
    stage = recipe.stage
    if plan is None:
        most_tiles = stage.batch_size * _most_tiles(recipe, config, None)
        visual = most_tiles * config.tokens_per_side**2
        places = stage.batch_size * stage.seq_len
        return float(places), float(most_tiles), [float(stage.seq_len)] * stage.batch_size, max(0, places - visual)
    packs = [pack for _, step in zip(range(_SAMPLES), plan.steps(), strict=False) for pack in step.packs]
    share = stage.batch_size / len(packs)
    lengths = [float(entry.num_tokens) for pack in packs for entry in pack.entries]
    tiles = sum(pack.num_tiles for pack in packs) * share
    tokens = sum(lengths) * share
    # Choose as many documents as one step has, evenly spaced over the sampled ones.
    chosen = lengths[:: max(1, round(1 / share))]
    trained = sum(
        weight * float(source.num_trained.sum()) / float(source.num_tokens.sum())
        for source, weight in zip(plan.sources, plan.shares, strict=True)
    )
    return tokens, tiles, _scale_to_total(chosen, tokens), round(tokens * trained)


def _scale_to_total(lengths: Iterable[float], total: float) -> list[float]:
    lengths = list(lengths)
    factor = total / sum(lengths)
    return [length * factor for length in lengths]


def _most_tiles(recipe: Recipe, config: ModelConfig, plan: PackPlan | None) -> int:
    """Return the most tiles of a pack: in the plan's first window, or the limit of a pack without a plan."""
    if plan is not None:
        return max((pack.num_tiles for pack in plan.window(0)), default=0)
    # A sequence cannot have more visual tokens than positions.
    return min(plan_options(recipe).packing.max_tiles, recipe.stage.seq_len // config.tokens_per_side**2)


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _count(value: float) -> str:
    for size, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.2f} {name}"
    return f"{value:,.0f}"
