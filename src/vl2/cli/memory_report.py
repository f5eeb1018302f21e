"""The memory report of `vl2 inspect`: the memory of each part in each weight format, and what fits this machine."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from typing import Any, TextIO

from vl2.checkpoint.machine_memory import MachineMemory
from vl2.checkpoint.memory_plan import FORMATS, MemoryPlan, recommend
from vl2.checkpoint.model_size import ModelSize, parameters, share_at_work, weight_bytes
from vl2.checkpoint.policy import SHARE_OF_AVAILABLE
from vl2.checkpoint.quantization_config import QuantizationConfig
from vl2.config import ModelConfig
from vl2.deep_encoder_config import DeepEncoderConfig, QueryEncoderConfig
from vl2.dtypes import DTYPES
from vl2.infer.vlm import choose_device
from vl2.quant.quantize_model import Scheme
from vl2.runtime import explain_on

WIDTH = 99  # columns of the tables
SHOWN_FORMATS = ("bfloat16", "int8", "int4")  # formats in the table of parts
VERDICT_TEXT = {"fits": "fits", "paged": "paging experts", "crowded": "if others make room", "too large": "too large"}


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """The memory plans of a model for every weight format that it can have."""

    target: str  # as the user named it
    config: ModelConfig
    record: QuantizationConfig | None  # if the files are quantized already
    context: int  # tokens that the KV cache is planned for
    cache: str  # its form, "auto" or "int8"
    memory: MachineMemory  # the memory that the model may use
    is_bounded: bool  # whether `memory` is the user's limit, not the machine's free memory
    forms: tuple[str | Scheme, ...]  # weight formats
    plans: tuple[MemoryPlan, ...]  # one per format, from the most exact to the smallest

    @classmethod
    def of(
        cls,
        target: str,
        config: ModelConfig,
        record: QuantizationConfig | None,
        *,
        context: int | None,
        cache: str,
        bound: int | None,
    ) -> MemoryReport:
        """Plan for the memory that is free on this machine now, or for `bound` bytes."""
        context = context or config.language_config.max_position_embeddings
        machine = MachineMemory.now()
        free = MachineMemory(total=machine.total, available=round(SHARE_OF_AVAILABLE * machine.available))
        forms: tuple[str | Scheme, ...] = FORMATS if record is None else (record.scheme,)
        return cls(
            target=target,
            config=config,
            record=record,
            context=context,
            cache=cache,
            memory=free if bound is None else MachineMemory(total=bound, available=bound),
            is_bounded=bound is not None,
            forms=forms,
            plans=tuple(MemoryPlan.of(config, form, context, cache=cache) for form in forms),
        )

    @property
    def advised(self) -> MemoryPlan | None:
        return recommend(self.plans, self.memory, self.config.torch_dtype)

    def advice(self) -> str:
        """Return a sentence or two with the commands to run the model."""
        plan = self.advised
        if plan is None:
            least = min(plan.least for plan in self.plans)
            return f"too large for {gigabytes(self.memory.available)}: it needs {gigabytes(least)} at least"
        target = shlex.quote(self.target)
        flags = "" if self.cache == "auto" else f" --cache {self.cache}"
        bound = f" --memory {self.memory.available / 1e9:.1f}GB" if self.is_bounded else ""
        if plan.verdict(self.memory) == "paged":
            made = "" if self.record else f"`vl2 quantize {target} OUT --weights {plan.weights}`, then "
            folder = target if self.record else "OUT"
            paged = plan.paged_per_token(self.memory.available)
            held = plan.experts_within(self.memory.available) / plan.experts
            says = (
                f"{made}`vl2 ask ... --model {folder}{flags}{bound}`: {held:.0%} of the experts stay in memory, and "
                f"about {size_text(paged)} a token come from the file"
            )
            if not self.is_bounded and plan.total <= self.memory.total:
                says += f". With {gigabytes(plan.total)} free, all of it would fit"
            return says
        if self.record is not None or plan.weights in DTYPES:
            is_rounded = self.record is None and self.config.torch_dtype == "float32" and plan.weights == "bfloat16"
            dtype = " --dtype bfloat16" if is_rounded else ""
            says = f"`vl2 ask ... --model {target}{dtype}{flags}`: all of it fits"
        else:
            says = f"`vl2 quantize {target} OUT --weights {plan.weights}`, then `vl2 ask ... --model OUT{flags}`"
        smallest = self.plans[-1]
        if plan is not smallest:
            says += f". In {smallest.weights} a token reads {smallest.read_per_token / plan.read_per_token:.2f} of it"
        return says

    def to_dict(self) -> dict[str, Any]:
        available = self.memory.available
        sizes = [weight_bytes(self.config, form) for form in self.forms]
        return {
            "context": self.context,
            "cache": self.cache,
            "memory": {"total": self.memory.total, "usable": available, "is_bounded": self.is_bounded},
            "parts": {
                part: {
                    "parameters": count,
                    "bytes": {plan.weights: held[part] for plan, held in zip(self.plans, sizes, strict=True)},
                }
                for part, count in parameters(self.config).items()
            },
            "plans": [
                {
                    **plan.to_dict(),
                    "verdict": plan.verdict(self.memory),
                    "paged_per_token": plan.paged_per_token(available) if plan.verdict(self.memory) == "paged" else 0,
                }
                for plan in self.plans
            ],
            "advised": None if self.advised is None else self.advised.weights,
            "advice": self.advice(),
            "runner": self.runner(),
        }

    def print(self, file: TextIO) -> None:
        """Print the plans, the machine's memory, and the advice."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        console = Console(file=file, highlight=False, width=WIDTH)
        form = "cache" if self.cache == "auto" else f"{self.cache} cache"
        cache = f"{form}, {self.context:,}"
        names = ("weights in", "weights", "a token reads", cache, "activations", "all", "here")
        table = Table(*names, box=SIMPLE_HEAD)
        for column in table.columns[1:-1]:
            column.justify = "right"
        for plan in self.plans:
            sizes = (plan.weight_bytes, plan.read_per_token, plan.cache, plan.activations, plan.total)
            table.add_row(plan.weights, *(size_text(size) for size in sizes), VERDICT_TEXT[plan.verdict(self.memory)])
        console.print(table)
        kept, program = (size_text(size) for size in (self.plans[0].reuse, self.plans[0].program))
        print(f"all       with {program} for the program and {kept} that is kept of images and prompts", file=file)
        machine = MachineMemory.now()
        allowed = f", {gigabytes(self.memory.available)} allowed" if self.is_bounded else ""
        print(
            f"memory    {gigabytes(machine.total)}, {gigabytes(machine.available)} of it free now{allowed}", file=file
        )
        for name, text in (("advice", self.advice()), ("runner", self.runner())):
            filled = textwrap.fill(f"{name:<10}{text}", WIDTH, subsequent_indent=" " * 10, break_long_words=False)
            print(filled, file=file)

    def runner(self) -> str:
        """Name the runner for this machine's default device and the checkpoint's own type, with the reason."""
        device = choose_device("auto")
        dtype = DTYPES[self.config.torch_dtype]
        name, *others = explain_on(device, dtype)
        return "; ".join([f"{name}, in {self.config.torch_dtype} on {device}", *others])


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def size_text(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def print_size(size: ModelSize, file: TextIO) -> None:
    """Print the architecture of a model, and the parameters and bytes of each part."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    language = size.config.language_config
    attention = f"latent attention, rank {language.kv_lora_rank}" if language.use_mla else "multi-head attention"
    experts = (
        f"{language.n_routed_experts} experts, {language.num_experts_per_tok} per token, "
        f"{language.n_shared_experts or 0} shared, {language.scoring_func} routing"
        if language.n_routed_experts
        else "dense"
    )
    console = Console(file=file, highlight=False, width=WIDTH)
    console.print(
        f"language  {language.num_hidden_layers} layers of {language.hidden_size}, {attention}\n"
        f"          {experts}\n"
        f"          vocabulary {language.vocab_size:,}, context {language.max_position_embeddings:,} tokens\n"
        f"vision    {_encoder_text(size.config)}"
    )
    parts = Table("part", "parameters", "active per token", *SHOWN_FORMATS, box=SIMPLE_HEAD)
    for column in parts.columns[1:]:
        column.justify = "right"
    sizes = {form: weight_bytes(size.config, form) for form in SHOWN_FORMATS}
    for part, count in parameters(size.config).items():
        share = share_at_work(size.config, part)
        active = _millions(round(count * share)) if share else "-"
        parts.add_row(part, _millions(count), active, *(size_text(sizes[form][part]) for form in SHOWN_FORMATS))
    totals = (size_text(sum(sizes[form].values())) for form in SHOWN_FORMATS)
    parts.add_row("all", _millions(size.parameters), _millions(size.active), *totals, style="bold")
    console.print(parts)
    print(
        f"language model: {_millions(size.language)}, {_millions(size.language_active)} of it for a token. "
        "GB = 10^9 bytes, MB = 10^6.",
        file=file,
    )


def _encoder_text(config: ModelConfig) -> str:
    vision = config.vision_config
    tokens = f"{config.tokens_per_side**2} tokens each"
    if isinstance(vision, DeepEncoderConfig):
        sam, second = vision.sam, vision.second
        if isinstance(second, QueryEncoderConfig):
            half = f"a decoder with queries, {second.layers} layers of {second.dim}"
        else:
            half = f"CLIP, {second.layers} layers of {second.width}"
        return f"SAM, {sam.layers} layers of {sam.width}, and {half}; views of {vision.image_size} px, {tokens}"
    return f"{vision.layers} layers of {vision.width}, tiles of {vision.image_size} px, {tokens}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"
