"""From a checkpoint folder to a model ready to answer: plain or quantised, adapted, paged where memory is short.

What is refused is refused before a weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.infer.memory_plan import MemoryPlan
from vl2.lora.apply import merge_lora
from vl2.lora.peft_files import load_adapter
from vl2.model import VL2
from vl2.quant.apply import quantize_model
from vl2.quant.config import QuantizationConfig
from vl2.quant.paging import ExpertPager
from vl2.quant.read import load_quantizing, map_quantized, read_quantized
from vl2.quant.scheme import SCHEME_NAMES, Scheme, scheme_named
from vl2.weights import load_model
from vl2.weights.load import Progress
from vl2.weights.machine_memory import MachineMemory, parse_bytes

AS_STORED = "auto"
# Of what the machine could give now, what a model may take without being told: the rest is left for others.
SHARE_OF_AVAILABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is to be loaded and held."""

    device: torch.device
    dtype: torch.dtype | None = None  # of what is not quantised; None for the checkpoint's own
    weights: str = AS_STORED  # or one of the quantised formats
    memory: int | None = None  # bytes for everything together; None for what the machine has
    adapter: Path | None = None
    context: int | None = None  # tokens of the longest conversation; None for the checkpoint's own
    cache_tokens: int | None = None  # positions of all conversations together; None for one that fills the context
    reuse_bytes: int = 0  # what may be kept of images and prompts


def check_weights(weights: str) -> None:
    """Raise UserError unless weights can be held in this form."""
    if weights != AS_STORED and weights not in SCHEME_NAMES:
        raise UserError(f"weights must be {AS_STORED}, {' or '.join(SCHEME_NAMES)}, got {weights}")


def memory_bytes(memory: str | int | None, device: torch.device) -> int | None:
    """Return a bound of memory in bytes; UserError where it is no size, or is not for this device."""
    if memory is not None and device.type != "cpu":
        raise UserError(f"memory is bounded on the CPU only, and the model is to run on {device}")
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    if size is not None and size < 1:
        raise UserError(f"memory must be above 0, got {memory}")
    return size


def open_model(folder: Path, options: LoadOptions, progress: Progress | None = None) -> VL2:
    """Return the model of a folder in evaluation mode."""
    check_weights(options.weights)
    config = ModelConfig.from_file(folder / "config.json")
    quantization = QuantizationConfig.of(config, folder)
    if quantization is None:
        return _open_plain(folder, config, options, progress)
    if options.weights not in (AS_STORED, quantization.weights):
        raise UserError(
            f"{folder} is quantised to {quantization.weights}: {options.weights} is made of the plain checkpoint"
        )
    if options.adapter is not None:
        raise UserError(f"{folder} is quantised, and an adapter is added into plain weights: take the plain checkpoint")
    if options.device.type != "cpu":
        return read_quantized(
            folder, config, quantization, dtype=options.dtype, device=options.device, progress=progress
        )
    return _open_mapped(folder, config, quantization, options, progress)


def _open_plain(folder: Path, config: ModelConfig, options: LoadOptions, progress: Progress | None) -> VL2:
    is_quantized = options.weights != AS_STORED
    if options.device.type == "cpu":
        # An adapter is added into plain weights, so these are all there before they are quantised.
        is_plain = not is_quantized or options.adapter is not None
        kind = str(options.dtype or config.torch_dtype).removeprefix("torch.") if is_plain else options.weights
        _check_fits(folder, config, _plan(config, kind, options), options)
    if is_quantized and options.adapter is None:
        scheme = scheme_named(options.weights)
        return load_quantizing(folder, scheme, dtype=options.dtype, device=options.device, progress=progress)
    only_answers = options.adapter is None
    model = load_model(folder, dtype=options.dtype, device=options.device, progress=progress, only_answers=only_answers)
    if options.adapter is not None:
        load_adapter(model, options.adapter)
        merge_lora(model)
    if is_quantized:
        quantize_model(model, scheme_named(options.weights))
    return model


def _open_mapped(
    folder: Path, config: ModelConfig, quantization: QuantizationConfig, options: LoadOptions, progress: Progress | None
) -> VL2:
    mapped = map_quantized(folder, config, quantization, dtype=options.dtype)
    plan = _plan(config, quantization.scheme, options)
    memory = options.memory
    if memory is None:
        memory = round(SHARE_OF_AVAILABLE * MachineMemory.now().available)
    if plan.total <= memory:
        mapped.read(progress)
        return mapped.model
    if plan.least > memory:
        raise UserError(
            f"{folder} needs at least {_gb(plan.least)} with its experts paged, and {_gb(memory)} are "
            f"{'allowed' if options.memory else 'free'}"
        )
    pager = ExpertPager(mapped, plan.experts_within(memory))
    pager.attach()
    pager.read_the_rest(progress)
    return mapped.model


def _check_fits(folder: Path, config: ModelConfig, plan: MemoryPlan, options: LoadOptions) -> None:
    limit = options.memory or MachineMemory.now().total
    if plan.total <= limit:
        return
    where = "are allowed" if options.memory else "is what this machine has"
    needs = f"{folder} needs {_gb(plan.total)} in {plan.weights}, and {_gb(limit)} {where}"
    if options.adapter is not None:
        raise UserError(f"{needs}: an adapter is added into plain weights, which are all held for that")
    smallest = _plan(config, "int4", options)
    in_int4 = "" if plan.weights == smallest.weights else f"in int4 it needs {_gb(smallest.total)}, "
    raise UserError(
        f"{needs}: {in_int4}"
        f"from files that `vl2 quantize` writes in int4 {_gb(smallest.least)} and more, its experts paged"
    )


def _plan(config: ModelConfig, weights: str | Scheme, options: LoadOptions) -> MemoryPlan:
    context = options.context or config.language_config.max_position_embeddings
    return MemoryPlan.of(
        config,
        weights,
        context,
        dtype=options.dtype,
        cache_tokens=options.cache_tokens,
        reuse=options.reuse_bytes,
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
