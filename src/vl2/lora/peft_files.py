"""Read and write adapters in the format of the peft library: adapter_config.json and adapter_model.safetensors.

Tensor names are those that peft gives to adapters of `vl2.hf`'s model. The modules of that model have their released
names, except for the experts: the released code has one module per expert, which the current peft cannot stack.

peft treats stacked experts as `target_parameters`. It nests one wrapper per parameter around the experts, with the
first parameter innermost, and joins the matrices of all experts: A is [E * r, in], and B is [out, r * E] with the
expert index changing fastest. Versions before 0.20 interpreted a stack as [E, in, out], so in their files A and B have
exchanged roles.

This module does not need peft. A test exchanges adapters with it in both directions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vl2.checkpoint.safetensors_file import read_header, read_into
from vl2.errors import UserError
from vl2.lora.adapter_layers import LoRAExperts, LoRALinear
from vl2.lora.attach import insert_layer, is_adapted, lora_layers, merge_lora, remove_lora
from vl2.model.moe import Experts

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EXPERTS = "mlp.experts"
# The version whose layout we write. It is the first that interprets a stack of experts as [E, out, in].
PEFT_VERSION = "0.20.0"
# Options of peft that we do not support, with their neutral values. Any other value would change the computation.
UNSUPPORTED = {
    "use_dora": False, "bias": "none", "modules_to_save": None, "fan_in_fan_out": False, "lora_bias": False,
    "layer_replication": None, "trainable_token_indices": None, "use_qalora": False, "alora_invocation_tokens": None,
    "layers_to_transform": None,
}  # fmt: skip

# Initializations of peft that also change the base weights. Such an adapter fits only the changed weights, which we do
# not have.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The matrices A and B of one adapted parameter, in our layout."""

    module: str  # name of the adapted module
    parameter: str  # "weight", "gate_up_proj" or "down_proj"
    a: Tensor
    b: Tensor


def save_adapter(model: nn.Module, folder: Path, base_model: str = "") -> None:
    """Write the model's adapter to a folder. `base_model` is the name or folder of the model that it adapts.

    A rank-stabilized scale is written as the equivalent alpha. Raise UserError if the folder holds an adapter already,
    or if the model has none.
    """
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} holds an adapter already: choose a new folder to save to")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    has_experts = False
    for name, layer in lora_layers(model):
        ranks[name], alphas[name] = layer.rank, layer.scale * layer.rank
        if isinstance(layer, LoRALinear):
            tensors |= _named(name, layer.lora_A, layer.lora_B)
        else:
            has_experts = True
            tensors |= _named(f"{name}.base_layer", *_flat(layer.gate_up_lora_A, layer.gate_up_lora_B))
            tensors |= _named(name, *_flat(layer.down_lora_A, layer.down_lora_B))
    if not tensors:
        raise UserError("the model has no adapter to save")
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "peft_version": PEFT_VERSION,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "use_rslora": False,
        "lora_dropout": 0.0,  # peft refuses other values with experts; after training the value has no effect
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": [name for name in ranks if not name.endswith(EXPERTS)],
        "target_parameters": [f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"] if has_experts else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # The config is written last, so that a folder with a config always has its weights.
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _pattern(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Return the values that differ from `usual`, keyed by the regular expressions that peft looks up.

    For experts peft looks up the names of the parameters, otherwise the names of the modules.
    """
    leaves = {True: (".gate_up_proj", ".down_proj"), False: ("",)}
    return {
        re.escape(name + leaf): value
        for name, value in values.items()
        if value != usual
        for leaf in leaves[name.endswith(EXPERTS)]
    }


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Attach the adapter of a folder to the model.

    Raise UserError if a file or tensor is missing, unexpected or of a wrong shape, or if the adapter uses an
    unsupported option. On a model on the meta device, the adapter is on the meta device too, and no weights are read.
    """
    if is_adapted(model):
        raise UserError("the model has an adapter already: merge it or take it off first")
    config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"no {WEIGHTS} in {folder}")
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        _insert(model, folder, config)
    except BaseException:
        remove_lora(model)
        raise
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(requires_grad.get(name.replace(".base_layer", ""), True))


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Merge the adapter of a folder into the weights of a model, in place. Raise UserError as `load_adapter` does."""
    load_adapter(model, folder)
    merge_lora(model)


def _insert(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> None:
    stored = _read_tensors(folder, has_values=not any(one.is_meta for one in model.parameters()))
    is_stabilized, is_old = bool(config.get("use_rslora")), _is_older(str(config.get("peft_version", "")))
    by_module: dict[str, list[_Pair]] = {}
    for prefix in sorted({name.rpartition(".lora_")[0] for name in stored}):
        a, b = stored.pop(f"{prefix}.lora_A.weight", None), stored.pop(f"{prefix}.lora_B.weight", None)
        if a is None or b is None:
            raise UserError(f"{folder} has only one of the two matrices of {prefix}")
        pair = _read_pair(model, prefix, a, b, config, is_old)
        by_module.setdefault(pair.module, []).append(pair)
    if stored:
        raise UserError(f"{folder} holds {len(stored)} tensors that are no LoRA matrices: {sorted(stored)[0]}")
    for module, pairs in by_module.items():
        # Our adapter layers have one rank and one scale per module. A pair of smaller rank is therefore padded with
        # zeros, and a scale that differs from the first one is multiplied into B.
        rank = max(pair.a.shape[-2] for pair in pairs)
        scales = [_scale(config, pair, is_stabilized) for pair in pairs]
        layer = insert_layer(model, module, rank=rank, scale=scales[0])
        for pair, scale in zip(pairs, scales, strict=True):
            _fill(layer, pair, scale / scales[0])


def _fill(layer: LoRALinear | LoRAExperts, pair: _Pair, strength: float) -> None:
    prefix = {"weight": "", "gate_up_proj": "gate_up_", "down_proj": "down_"}[pair.parameter]
    targets = (layer.get_parameter(f"{prefix}lora_A"), layer.get_parameter(f"{prefix}lora_B"))
    rank = pair.a.shape[-2]
    a, b = targets[0].data[..., :rank, :], targets[1].data[..., :, :rank]
    if a.shape != pair.a.shape or b.shape != pair.b.shape:
        raise UserError(
            f"the adapter's matrices for {pair.module} {pair.parameter} are {list(pair.a.shape)} and "
            f"{list(pair.b.shape)}, this model needs {list(a.shape)} and {list(b.shape)}"
        )
    a.copy_(pair.a)
    b.copy_(pair.b if strength == 1 else pair.b.float() * strength)


def _read_pair(model: nn.Module, prefix: str, a: Tensor, b: Tensor, config: Mapping[str, Any], is_old: bool) -> _Pair:
    name = prefix.removeprefix(PREFIX)
    is_nested = name.endswith(".experts.base_layer")
    module = name.removesuffix(".base_layer") if is_nested else name
    try:
        base = model.get_submodule(module)
    except AttributeError:
        raise UserError(f"the adapter is for another model: there is no {module}") from None
    if isinstance(base, LoRALinear | LoRAExperts):
        base = base.base_layer
    if not isinstance(base, Experts):
        return _Pair(module=module, parameter="weight", a=a, b=b)
    parameter = "gate_up_proj" if is_nested else _outermost(config)
    E, out, into = getattr(base, parameter).shape
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] % E or b.shape[1] != a.shape[0]:
        raise UserError(f"the adapter's matrices for {module} do not belong to {E} experts")
    if (is_old or into != out) and (a.shape[1], b.shape[0]) == (out, into):
        # The old layout describes the transposed matrix, and (B A)^T = A^T B^T.
        old_a, old_b = a.unflatten(0, (E, -1)), b.unflatten(1, (-1, E)).permute(2, 0, 1)
        return _Pair(module=module, parameter=parameter, a=old_b.mT, b=old_a.mT)
    return _Pair(
        module=module, parameter=parameter, a=a.unflatten(0, (E, -1)), b=b.unflatten(1, (-1, E)).permute(2, 0, 1)
    )


def _outermost(config: Mapping[str, Any]) -> str:
    """Return the experts' parameter that peft's outermost wrapper adapts, which is the last adapted parameter."""
    leaves = {str(name).rpartition(".")[2] for name in config.get("target_parameters") or ()}
    return "down_proj" if "down_proj" in leaves else "gate_up_proj"


def _scale(config: Mapping[str, Any], pair: _Pair, is_stabilized: bool) -> float:
    rank = pair.a.shape[-2]
    name = pair.module if pair.parameter == "weight" else f"{pair.module}.{pair.parameter}"
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if is_stabilized else rank)


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"no {CONFIG} in {folder}: is this the folder of an adapter?") from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise UserError(f"{folder / CONFIG} does not describe a LoRA adapter")
    for key, value in UNSUPPORTED.items():
        if config.get(key, value) not in (value, [], {}):
            raise UserError(f"the adapter of {folder} has {key} = {config[key]!r:.60}, which is not supported")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise UserError(
            f"the adapter of {folder} has init_lora_weights = {start!r:.60}, which changes the weights under it too: "
            "let peft convert it to plain LoRA (path_initial_model_for_weight_conversion) or merge it"
        )
    return config


def _read_tensors(folder: Path, *, has_values: bool) -> dict[str, Tensor]:
    tensors = {}
    for name, stored in read_header(folder / WEIGHTS).items():
        tensors[name] = torch.empty(stored.shape, dtype=stored.dtype, device="cpu" if has_values else "meta")
        if has_values:
            read_into(tensors[name], stored)
    return tensors


def _is_older(version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < (0, 20)


def _named(name: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    matrices = {"lora_A": a, "lora_B": b}
    return {f"{PREFIX}{name}.{leaf}.weight": t.detach().cpu().contiguous() for leaf, t in matrices.items()}


def _flat(a_ErC: Tensor, b_ECr: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [E * r, in] and B [out, r * E], the joined matrices of all experts in peft's layout."""
    return a_ErC.flatten(0, 1), b_ECr.permute(1, 2, 0).flatten(1)
