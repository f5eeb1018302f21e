"""Attach an adapter to a model, remove it, and merge it into the weights.

An adapter layer replaces the module that it adapts and holds it as its base layer, so the model's own code needs no
support for adapters. After removal the model has its original modules, with bit-identical weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vl2.errors import UserError
from vl2.lora.adapter_layers import LoRAExperts, LoRALayer, LoRALinear
from vl2.lora.spec import LoRASpec
from vl2.model.moe import Experts


def add_lora(model: nn.Module, spec: LoRASpec, seed: int = 0) -> list[str]:
    """Attach a new adapter and return the names of the adapted modules. It does not change the outputs yet.

    The model's own parameters are frozen; only the adapter requires gradients. Raise UserError if the model has an
    adapter already, or if a target matches no module of this model.
    """
    if is_adapted(model):
        raise UserError("the model has an adapter already: merge it or take it off first")
    names = [name for name, module in model.named_modules() if spec.takes(name) and _is_adaptable(module)]
    for target in spec.targets:
        if not any(LoRASpec(targets=(target,)).takes(name) for name in names):
            raise UserError(f"this model has no {target} to adapt")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        layer = insert_layer(model, name, rank=spec.rank, scale=spec.scale, dropout=spec.dropout)
        _draw(layer, generator)
    return names


def insert_layer(model: nn.Module, name: str, *, rank: int, scale: float, dropout: float = 0.0) -> LoRALayer:
    """Replace one module by an adapter layer with zero weights, and return that layer.

    Raise UserError if the module is neither a linear layer nor a stack of experts.
    """
    base = model.get_submodule(name)
    layer: LoRALayer
    if isinstance(base, Experts):
        layer = LoRAExperts(base, rank, scale, dropout)
    elif isinstance(base, nn.Linear):
        layer = LoRALinear(base, rank, scale, dropout)
    else:
        raise UserError(f"{name} is a {type(base).__name__}, which cannot be adapted")
    layer.train(base.training)
    _put(model, name, layer)
    return layer


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Let the model compute without its adapter during the `with` block."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.is_bypassed = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_bypassed = False


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """Yield the adapter layers with the names of the modules that they adapt."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear | LoRAExperts):
            yield name, module


def is_adapted(model: nn.Module) -> bool:
    return any(True for _ in lora_layers(model))


def remove_lora(model: nn.Module) -> None:
    """Put the original modules back. The caller must set `requires_grad` of the parameters again."""
    for name, layer in list(lora_layers(model)):
        _put(model, name, layer.base_layer)


@torch.no_grad()
def merge_lora(model: nn.Module) -> Callable[[], None]:
    """Merge the adapter into the weights, remove it, and return a function that undoes both exactly.

    The sum is computed in float32 and rounded once. The returned function holds the old weights in memory. Raise
    UserError if an adapted layer is quantized.
    """
    layers = list(lora_layers(model))
    for name, layer in layers:
        if not isinstance(layer.base_layer, nn.Linear | Experts):
            raise UserError(f"{name} is quantized: load the model in full precision to merge an adapter")
    old: list[tuple[nn.Parameter, Tensor]] = []
    for name, layer in layers:
        for leaf, delta in layer.deltas().items():
            parameter = layer.base_layer.get_parameter(leaf)
            old.append((parameter, parameter.data))
            parameter.data = (parameter.float() + delta).to(parameter.dtype)
        _put(model, name, layer.base_layer)

    def undo() -> None:
        for parameter, data in old:
            parameter.data = data
        for name, layer in layers:
            _put(model, name, layer)

    return undo


def _is_adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Experts)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@torch.no_grad()
def _draw(layer: LoRALayer, generator: torch.Generator) -> None:
    """Draw A uniformly from -1 / sqrt(in) to 1 / sqrt(in), as PEFT does; B stays zero."""
    for name, parameter in layer.named_parameters(recurse=False):
        if name.endswith("lora_A") and not parameter.is_meta:
            bound = parameter.shape[-1] ** -0.5
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
