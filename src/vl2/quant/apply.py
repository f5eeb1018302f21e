"""Putting quantised layers into a model: empty ones to be filled from files, or made from the weights at hand.

Loading a plain checkpoint: build the model on the meta device, put quantised layers in with `allocate_quantized`,
materialise, and quantise tensor by tensor with `quantize_into`; so the plain weights are never held together. Loading
quantised files: the same, with the tensors of the state dict filled or mapped directly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.moe import Experts
from vl2.quant.modules import QuantizedExperts, QuantizedLinear, QuantizedModule
from vl2.quant.scheme import Scheme, quantized_modules
from vl2.weights.names import Place


def allocate_quantized(model: VL2, scheme: Scheme) -> list[str]:
    """Put empty quantised layers in the place of those that the scheme names; return the names. In place.

    They lie on the device of what they replace, so a model on the meta device stays there.
    """
    kinds = quantized_modules(model, scheme)
    for name, kind in kinds.items():
        module = model.get_submodule(name)
        _put(model, name, _empty(module, kind))
    return list(kinds)


@torch.no_grad()
def quantize_model(model: VL2, scheme: Scheme, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Quantise a loaded model, layer by layer; return the names of the layers. In place."""
    kinds = quantized_modules(model, scheme)
    for done, (name, kind) in enumerate(kinds.items(), 1):
        module = model.get_submodule(name)
        quantized = _empty(module, kind)
        with _named(name):
            if isinstance(module, Experts) and isinstance(quantized, QuantizedExperts):
                for expert in range(quantized.num_experts):
                    quantized.quantize_from("gate_up", expert, module.gate_up_proj[expert])
                    quantized.quantize_from("down", expert, module.down_proj[expert])
            elif isinstance(module, nn.Linear) and isinstance(quantized, QuantizedLinear):
                quantized.quantize_from(module.weight)
        _put(model, name, quantized)
        if progress is not None:
            progress(done, len(kinds))
    return list(kinds)


def quantize_into(model: VL2, place: Place, weight: Tensor) -> bool:
    """Quantise a tensor of a plain checkpoint into its layer; False where its layer is not quantised. In place.

    The place is that of the tensor in the plain model.
    """
    name, _, leaf = place.parameter.rpartition(".")
    module = model.get_submodule(name)
    if isinstance(module, QuantizedLinear) and leaf == "weight":
        with _named(place.name):
            module.quantize_from(weight)
        return True
    if not isinstance(module, QuantizedExperts):
        return False
    assert place.expert is not None, f"{place.name} is not one expert's"
    part = None if place.rows is None else int(place.rows[0] > 0)
    with _named(place.name):
        module.quantize_from("gate_up" if leaf == "gate_up_proj" else "down", place.expert, weight, part)
    return True


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in an error which weight it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, QuantizedLinear | QuantizedExperts) for module in model.modules())


def _empty(module: nn.Module, kind: str) -> QuantizedModule:
    make = QuantizedExperts.like if isinstance(module, Experts) else QuantizedLinear.like
    quantized: QuantizedModule = make(module, kind)  # type: ignore[arg-type]  # asked for by quantized_modules
    return quantized.train(module.training)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
