"""Decide how a checkpoint is loaded: which tensors stay in their files (memory-mapped), are copied, quantized or paged.

| files     | to                         | stay in their files             | read into memory of their own             |
|-----------|----------------------------|---------------------------------|-------------------------------------------|
| plain     | answer, CPU                | token table, head, experts [1]  | the rest [2]                              |
| plain     | answer in 8 or 4 bits, CPU | token table                     | the rest, quantized tensor by tensor [3]  |
| plain     | answer, with an adapter    | nothing                         | everything [4], then quantized if wanted  |
| quantized | answer, CPU                | everything; experts paged if    | what is wanted in another type            |
|           |                            | memory is short [5]             |                                           |
| either    | answer, another device     | nothing                         | everything                                |
| either    | answer, on several ranks   | nothing                         | everything, and its share of the experts  |
| plain     | train                      | nothing                         | everything                                |

1. A prompt needs only some rows of the table. The head and the chosen experts are read completely for every token,
   and from a file in huge pages this is as fast as from memory. If the file is not in huge pages, they are copied, see
   `vl2.checkpoint.in_place`.
2. Weights of the encoder and other weights that every token of a prompt uses are multiplied in tiles many times. Such
   products are faster if each row begins at a cache line.
3. This way the plain weights are never in memory all at once.
4. An adapter is added into the plain weights, and the file's own pages must not change.
5. Quantized files have the layout that the kernels read, see `vl2.checkpoint.write`. Plain experts are never paged,
   because quantizing them is both smaller and faster.

Options that cannot be met raise UserError before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from vl2.checkpoint.expert_share import ExpertShare
from vl2.checkpoint.folder import Checkpoint
from vl2.checkpoint.machine_memory import MachineMemory, parse_bytes
from vl2.checkpoint.memory_plan import MemoryPlan
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.int8_cache import AS_MODEL, CacheForm
from vl2.quant.quantize_model import SCHEME_NAMES, Scheme, scheme_named

AS_STORED = "auto"
# The fraction of the available memory that a model may use if the user sets no limit; the rest is for other programs.
SHARE_OF_AVAILABLE = 0.9
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load and hold a model. Quantization, adapters, memory limits and mapping are for inference only."""

    device: torch.device = CPU
    dtype: torch.dtype | None = None  # of what is not quantized; None for the checkpoint's own
    only_answers: bool = False
    weights: str = AS_STORED  # or one of the quantized formats
    adapt: Callable[[VL2], None] | None = None  # adds an adapter into the plain weights
    memory: int | None = None  # bytes for everything together; None for what the machine has
    cache: CacheForm = AS_MODEL  # the form of the KV cache that is planned for
    context: int | None = None  # tokens of the longest conversation; None for the checkpoint's own
    cache_tokens: int | None = None  # positions of all conversations together; None for one that fills the context
    reuse_bytes: int = 0  # what may be kept of images and prompts
    experts: ExpertShare | None = None  # the experts of one of several ranks; None for all

    def __post_init__(self) -> None:
        check_weights(self.weights)
        is_special = self.weights != AS_STORED or self.adapt is not None or self.memory is not None
        is_special = is_special or self.experts is not None
        assert self.only_answers or not is_special, f"{self}: for a model that only answers"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a checkpoint will be loaded: one row of the table above."""

    dtype: torch.dtype
    device: torch.device
    in_place: Literal["nothing", "table", "large", "everything"]  # the tensors to map instead of copying, if possible
    quantize: Scheme | None = None  # quantize each plain tensor while it is read
    quantize_at_the_end: Scheme | None = None  # quantize after the adapter has been added
    expert_bytes: int | None = None  # budget of paged experts in bytes; None keeps all experts in memory
    experts: ExpertShare | None = None  # the experts to load; None for all


def check_weights(weights: str) -> None:
    """Raise UserError unless `weights` is "auto" or the name of a quantization scheme."""
    if weights != AS_STORED and weights not in SCHEME_NAMES:
        raise UserError(f"weights must be {AS_STORED}, {' or '.join(SCHEME_NAMES)}, got {weights}")


def memory_bytes(memory: str | int | None, device: torch.device) -> int | None:
    """Return a memory limit in bytes. Raise UserError if it is not a size, or if the device is not the CPU."""
    if memory is not None and device.type != "cpu":
        raise UserError(f"memory is bounded on the CPU only, and the model is to run on {device}")
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    if size is not None and size < 1:
        raise UserError(f"memory must be above 0, got {memory}")
    return size


def choose_policy(checkpoint: Checkpoint, options: LoadOptions) -> Policy:
    """Return how to load a checkpoint. Raise UserError if the options cannot be met or memory is too small."""
    if options.experts is not None:
        return _of_share(checkpoint, options)
    if checkpoint.quantization is not None:
        return _of_quantized_files(checkpoint, options)
    dtype, device, is_on_cpu = options.dtype or checkpoint.dtype, options.device, options.device.type == "cpu"
    if not options.only_answers:
        return Policy(dtype=dtype, device=device, in_place="nothing")
    scheme = None if options.weights == AS_STORED else scheme_named(options.weights)
    is_adapted = options.adapt is not None
    if is_on_cpu:
        # An adapter is added into plain weights, so all of these are in memory before they are quantized.
        is_plain = scheme is None or is_adapted
        held = str(dtype).removeprefix("torch.") if is_plain else options.weights
        _check_fits(checkpoint, _plan(checkpoint, held, options), options)
    if is_adapted:
        return Policy(dtype=dtype, device=device, in_place="nothing", quantize_at_the_end=scheme)
    in_place: Literal["large", "table"] = "large" if scheme is None else "table"
    return Policy(dtype=dtype, device=device, in_place=in_place if is_on_cpu else "nothing", quantize=scheme)


def _of_quantized_files(checkpoint: Checkpoint, options: LoadOptions) -> Policy:
    folder, quantization = checkpoint.folder, checkpoint.quantization
    assert quantization is not None, f"{folder} is plain"
    if not options.only_answers:
        raise UserError(f"{folder} holds quantized weights, which can only answer: vl2.load and the commands take it")
    if options.weights not in (AS_STORED, quantization.weights):
        raise UserError(
            f"{folder} is quantized to {quantization.weights}: {options.weights} is made of the plain checkpoint"
        )
    if options.adapt is not None:
        raise UserError(f"{folder} is quantized, and an adapter is added into plain weights: take the plain checkpoint")
    dtype = options.dtype or checkpoint.dtype
    if options.device.type != "cpu":
        return Policy(dtype=dtype, device=options.device, in_place="nothing")
    plan = _plan(checkpoint, quantization.scheme, options)
    memory = options.memory
    if memory is None:
        memory = round(SHARE_OF_AVAILABLE * MachineMemory.now().available)
    if plan.least > memory:
        raise UserError(
            f"{folder} needs at least {_gb(plan.least)} with its experts paged, and {_gb(memory)} are "
            f"{'allowed' if options.memory else 'free'}"
        )
    expert_bytes = None if plan.total <= memory else plan.experts_within(memory)
    return Policy(dtype=dtype, device=options.device, in_place="everything", expert_bytes=expert_bytes)


def _of_share(checkpoint: Checkpoint, options: LoadOptions) -> Policy:
    """Return how a rank loads its share of the experts. Nothing stays in the files, and memory is not planned."""
    if options.adapt is not None:
        raise UserError("an adapter is added into a whole model: start one process, or take a merged checkpoint")
    if options.memory is not None:
        raise UserError("memory is bounded in one process only: start without torchrun")
    if checkpoint.quantization is not None and options.weights not in (AS_STORED, checkpoint.quantization.weights):
        raise UserError(
            f"{checkpoint.folder} is quantized to {checkpoint.quantization.weights}: {options.weights} is made of the "
            "plain checkpoint"
        )
    is_plain = options.weights == AS_STORED or checkpoint.quantization is not None
    return Policy(
        dtype=options.dtype or checkpoint.dtype,
        device=options.device,
        in_place="nothing",
        quantize=None if is_plain else scheme_named(options.weights),
        experts=options.experts,
    )


def _check_fits(checkpoint: Checkpoint, plan: MemoryPlan, options: LoadOptions) -> None:
    limit = options.memory or MachineMemory.now().total
    if plan.total <= limit:
        return
    where = "are allowed" if options.memory else "is what this machine has"
    needs = f"{checkpoint.folder} needs {_gb(plan.total)} in {plan.weights}, and {_gb(limit)} {where}"
    if options.adapt is not None:
        raise UserError(f"{needs}: an adapter is added into plain weights, which are all held for that")
    smallest = _plan(checkpoint, "int4", options)
    in_int4 = "" if plan.weights == smallest.weights else f"in int4 it needs {_gb(smallest.total)}, "
    raise UserError(
        f"{needs}: {in_int4}"
        f"from files that `vl2 quantize` writes in int4 {_gb(smallest.least)} and more, its experts paged"
    )


def _plan(checkpoint: Checkpoint, weights: str | Scheme, options: LoadOptions) -> MemoryPlan:
    context = options.context or checkpoint.config.language_config.max_position_embeddings
    return MemoryPlan.of(
        checkpoint.config,
        weights,
        context,
        dtype=options.dtype,
        cache=options.cache,
        cache_tokens=options.cache_tokens,
        reuse=options.reuse_bytes,
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
