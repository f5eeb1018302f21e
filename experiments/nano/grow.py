"""Make room in trained weights: decoder layers, attention heads and rotary channels, which change no answer at first.

    python -m experiments.nano.grow CHECKPOINT --to FOLDER [--layers 2 --after 1] [--heads 8] [--rope-dim 32]

New layers and heads add nothing until training gives them an output. With k times the rotary channels the same
wavelengths are there and k - 1 between each two of them, which the queries do not use yet.

Sources: arXiv 1511.05641 (growing a network without changing its function); the sizes, ours.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vl2.checkpoint.folder import new_folder
from vl2.config import LanguageConfig, ModelConfig
from vl2.errors import UserError
from vl2.model.init import initial_values

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LAYER = re.compile(r"(language\.model\.layers\.)(\d+)(\..*)")
OUTPUTS = ("o_proj.weight", "down_proj.weight")  # of a new layer: zero
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The sizes to grow to; None keeps one."""

    layers: int = 0
    """decoder layers to add"""
    after: int = 1
    """how many of the layers that are there come before the new ones; at least the dense ones"""
    heads: int | None = None
    rope_dim: int | None = None


def grow(before: Path, growth: Growth, to: Path) -> None:
    """Write a checkpoint that answers as another one and has more room, whole or not at all.

    UserError if the checkpoint has no latent attention with whole queries, or a size would shrink.
    """
    if to.exists():
        raise UserError(f"{to} is there already: give another folder")
    old = ModelConfig.from_file(before / CONFIG)
    new = replace(old, language_config=_grown_config(old.language_config, growth))
    try:
        tensors = _grown(load_file(before / WEIGHTS), old, new, growth)
        with new_folder(to) as partial:
            shutil.copytree(before, partial, dirs_exist_ok=True)
            (partial / CONFIG).write_text(json.dumps(new.to_dict(), indent=2) + "\n", encoding="utf-8")
            save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot grow {before}: {error}") from None


def _grown_config(old: LanguageConfig, growth: Growth) -> LanguageConfig:
    if old.kv_lora_rank is None or old.q_lora_rank is not None:
        raise UserError("only latent attention whose queries are not compressed can grow")
    dense, layers = old.first_k_dense_replace, old.num_hidden_layers
    heads, rope_dim = growth.heads or old.num_attention_heads, growth.rope_dim or old.qk_rope_head_dim
    if growth.layers < 0 or not dense <= growth.after <= layers:
        raise UserError(f"--layers must not be negative and --after in {dense}..{layers}")
    if growth.layers and dense == layers:
        raise UserError("only a model with experts can grow layers, and this one has dense layers alone")
    if heads < old.num_attention_heads:
        raise UserError(f"--heads must be at least {old.num_attention_heads}, got {heads}")
    if rope_dim < old.qk_rope_head_dim or rope_dim % old.qk_rope_head_dim:
        raise UserError(f"--rope-dim must be a multiple of {old.qk_rope_head_dim}, got {rope_dim}")
    return replace(
        old,
        num_hidden_layers=layers + growth.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        qk_rope_head_dim=rope_dim,
    )


def _grown(old: dict[str, Tensor], before: ModelConfig, after: ModelConfig, growth: Growth) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(SEED)
    grown = dict[str, Tensor]()
    for name, tensor in sorted(old.items()):
        found = LAYER.fullmatch(name)
        if found is None:
            grown[name] = tensor
            continue
        layer = int(found[2])
        grown[f"{found[1]}{layer + growth.layers * (layer >= growth.after)}{found[3]}"] = _wider(
            name, tensor, before, after, random
        )
    # A new layer has the tensors of the one that it comes before, or follows.
    like = growth.after if growth.after < before.language_config.num_hidden_layers else growth.after - 1
    for name, tensor in sorted(old.items()):
        found = LAYER.fullmatch(name)
        if found is not None and int(found[2]) == like:
            shape = _wider(name, tensor, before, after, random).shape
            for layer in range(growth.after, growth.after + growth.layers):
                grown[f"{found[1]}{layer}{found[3]}"] = _new(found[3], shape, after, random).to(tensor.dtype)
    return grown


def _new(name: str, shape: torch.Size, config: ModelConfig, random: torch.Generator) -> Tensor:
    """Return the first values of a new layer's tensor."""
    if name.endswith((*OUTPUTS, "e_score_correction_bias")):
        return torch.zeros(shape)
    return initial_values(f"language.model.layers.0{name}", shape, config, random)


def _wider(name: str, tensor: Tensor, before: ModelConfig, after: ModelConfig, random: torch.Generator) -> Tensor:
    """Return a tensor with new heads and rotary channels, if it has any."""
    old, new = before.language_config, after.language_config
    heads, more = old.num_attention_heads, new.num_attention_heads - old.num_attention_heads
    nope, width, rank = old.qk_nope_head_dim, old.hidden_size, old.kv_lora_rank
    assert rank is not None

    def fresh(*shape: int) -> Tensor:
        return torch.empty(*shape).normal_(0.0, old.initializer_range, generator=random).to(tensor.dtype)

    if name.endswith("q_proj.weight"):
        # Scores are divided by the root of a head's channels, of which there are more.
        scale = ((nope + new.qk_rope_head_dim) / (nope + old.qk_rope_head_dim)) ** 0.5
        parts = (tensor.float() * scale).to(tensor.dtype).view(heads, -1, width)
        rope = _spread(parts[:, nope:], torch.zeros(heads, new.qk_rope_head_dim, width, dtype=tensor.dtype))
        added = fresh(more, nope + new.qk_rope_head_dim, width)
        return torch.cat((torch.cat((parts[:, :nope], rope), dim=1), added)).flatten(0, 1)
    if name.endswith("kv_a_proj_with_mqa.weight"):
        rope = _spread(tensor[None, rank:], fresh(1, new.qk_rope_head_dim, width))[0]
        return torch.cat((tensor[:rank], rope))
    if name.endswith("kv_b_proj.weight"):
        return torch.cat((tensor, fresh(more * (nope + old.v_head_dim), rank)))
    if name.endswith("self_attn.o_proj.weight"):
        return torch.cat((tensor, torch.zeros(width, more * old.v_head_dim, dtype=tensor.dtype)), dim=1)
    return tensor


def _spread(old_HCD: Tensor, new_HCD: Tensor) -> Tensor:
    """Put the pairs of rotary channels where their wavelengths are among more of them."""
    old_HP2D, new_HP2D = (x_HCD.unflatten(1, (-1, 2)) for x_HCD in (old_HCD, new_HCD))
    new_HP2D[:, :: new_HP2D.shape[1] // old_HP2D.shape[1]] = old_HP2D
    spread_HCD: Tensor = new_HP2D.flatten(1, 2)
    return spread_HCD


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--after", type=int, default=1)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--rope-dim", type=int)
    args = parser.parse_args()
    growth = Growth(layers=args.layers, after=args.after, heads=args.heads, rope_dim=args.rope_dim)
    try:
        grow(args.checkpoint, growth, args.to)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
