"""The size of a model as tables."""

from __future__ import annotations

from typing import TextIO

from vl2.weights.size import PRECISIONS, ModelSize


def print_size(size: ModelSize, file: TextIO) -> None:
    """Print what a model consists of and what it needs."""
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
    console = Console(file=file, highlight=False)
    console.print(
        f"language  {language.num_hidden_layers} layers of {language.hidden_size}, {attention}\n"
        f"          {experts}\n"
        f"          vocabulary {language.vocab_size:,}, context {language.max_position_embeddings:,} tokens\n"
        f"vision    {vision.layers} layers of {vision.width}, tiles of {vision.image_size} px, "
        f"{size.config.tokens_per_side**2} tokens each"
    )
    parts = Table("part", "parameters", "active per token", box=SIMPLE_HEAD)
    for column in parts.columns[1:]:
        column.justify = "right"
    parts.add_row("vision encoder", _millions(size.vision), _millions(size.vision))
    if size.attention_pool:
        parts.add_row("attention pool (carried, unused)", _millions(size.attention_pool), "-")
    parts.add_row("projector", _millions(size.projector), _millions(size.projector))
    parts.add_row("language model", _millions(size.language), _millions(size.language_active))
    parts.add_row("all", _millions(size.parameters), _millions(size.active), style="bold")
    console.print(parts)
    memory = Table("precision", "weights", "cache of a full context", box=SIMPLE_HEAD)
    for column in memory.columns[1:]:
        column.justify = "right"
    for precision in PRECISIONS:
        value_bytes = 4 if precision == "float32" else 2  # the cache is kept in the type of the activations
        cache = size.cache_values_per_token * value_bytes * language.max_position_embeddings
        memory.add_row(precision, _size(size.weight_bytes(precision)), _size(cache))
    console.print(memory)
    print("GB = 10^9 bytes, MB = 10^6. int8: one scale a row; int4: a scale and an offset per 32 weights.", file=file)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"
