"""Several adapters on one model: each pass selects one of them, or none.

Changing adapters changes which modules stand in the model, a few hundred assignments. The base's own modules are
never wrapped, so the base answers as if there were no adapters, bit for bit.
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
    """Loads adapters once and puts them on and off a model."""

    def __init__(self, model: nn.Module, folders: Mapping[str, Path]) -> None:
        """Load the adapter of each folder under its name. UserError as in `load_adapter`, with the name."""
        self._model = model
        self._variants: dict[str, dict[str, nn.Module]] = {}  # adapter -> module name -> what stands there
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
        """Put one adapter to work, or none."""
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
    """Return what stands in the place. The matrix that latent attention absorbs must be whole, so it is merged."""
    if not place.endswith(".kv_b_proj") or not isinstance(layer, LoRALinear):
        return layer
    base: nn.Module = layer.base_layer  # of a quantized base no matrix can be merged
    if not isinstance(base, nn.Linear):
        return layer
    merged = nn.Linear(base.in_features, base.out_features, bias=False, device=base.weight.device)
    merged.weight.data = (base.weight.float() + layer.deltas()["weight"]).to(base.weight.dtype)
    return merged
