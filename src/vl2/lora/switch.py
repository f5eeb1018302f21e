"""Keep several adapters for one model, and select one of them, or none, for each pass.

A switch replaces modules of the model, which takes a few hundred assignments. The base model's own modules are never
wrapped, so without an adapter its outputs are bit-identical to those of a model without adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from vl2.errors import UserError
from vl2.lora.adapter_layers import LoRALinear
from vl2.lora.attach import lora_layers, remove_lora
from vl2.lora.peft_files import load_adapter


class AdapterSwitch:
    """Loads several adapters once, and switches a model between them."""

    def __init__(self, model: nn.Module, folders: Mapping[str, Path]) -> None:
        """Load the adapter of each folder under its name. Raise UserError as `load_adapter` does, with the name."""
        self._model = model
        self._variants: dict[str, dict[str, nn.Module]] = {}  # adapter -> module name -> module
        self._base: dict[str, nn.Module] = {}
        self._active: str | None = None
        for name, folder in folders.items():
            try:
                load_adapter(model, folder)
            except UserError as error:
                raise UserError(f"adapter {name}: {error}") from None
            layers = dict(lora_layers(model))
            remove_lora(model)
            self._base |= {place: layer.base_layer for place, layer in layers.items()}
            self._variants[name] = {place: _variant(place, layer) for place, layer in layers.items()}
            for variant in self._variants[name].values():
                variant.requires_grad_(False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._variants)

    def use(self, name: str | None) -> None:
        """Activate the adapter with this name; None activates the base model."""
        if name == self._active:
            return
        for place in self._variants.get(self._active or "", ()):
            self._put(place, self._base[place])
        for place, variant in self._variants[name].items() if name is not None else ():
            self._put(place, variant)
        self._active = name

    def _put(self, place: str, module: nn.Module) -> None:
        parent, _, leaf = place.rpartition(".")
        setattr(self._model.get_submodule(parent), leaf, module)


def _variant(place: str, layer: nn.Module) -> nn.Module:
    """Return the module that replaces the base module: the adapter layer, or a linear layer with merged weights.

    The weights are merged for `kv_b_proj`, because latent attention in its absorbed form reads that matrix directly.
    """
    if not place.endswith(".kv_b_proj") or not isinstance(layer, LoRALinear):
        return layer
    base: nn.Module = layer.base_layer  # if it is quantized, it cannot be merged
    if not isinstance(base, nn.Linear):
        return layer
    merged = nn.Linear(base.in_features, base.out_features, bias=False, device=base.weight.device)
    merged.weight.data = (base.weight.float() + layer.deltas()["weight"]).to(base.weight.dtype)
    return merged
