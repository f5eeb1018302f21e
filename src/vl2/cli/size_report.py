"""The parts of a model as a table."""

from __future__ import annotations

from typing import TextIO

from vl2.checkpoint.model_size import ModelSize, parameters, share_at_work, weight_bytes
from vl2.cli.memory_report import SHOWN, WIDTH, size_text


def print_size(size: ModelSize, file: TextIO) -> None:
    """Print what a model consists of, and the bytes of each part."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    language, vision = size.config.language_config, size.config.vision_config
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
        f"vision    {vision.layers} layers of {vision.width}, tiles of {vision.image_size} px, "
        f"{size.config.tokens_per_side**2} tokens each"
    )
    parts = Table("part", "parameters", "active per token", *SHOWN, box=SIMPLE_HEAD)
    for column in parts.columns[1:]:
        column.justify = "right"
    sizes = {form: weight_bytes(size.config, form) for form in SHOWN}
    for part, count in parameters(size.config).items():
        share = share_at_work(size.config, part)
        active = _millions(round(count * share)) if share else "-"
        parts.add_row(part, _millions(count), active, *(size_text(sizes[form][part]) for form in SHOWN))
    totals = (size_text(sum(sizes[form].values())) for form in SHOWN)
    parts.add_row("all", _millions(size.parameters), _millions(size.active), *totals, style="bold")
    console.print(parts)
    print(
        f"language model: {_millions(size.language)}, {_millions(size.language_active)} of it for a token. "
        "GB = 10^9 bytes, MB = 10^6.",
        file=file,
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"
