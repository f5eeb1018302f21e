"""Quantize a model: which part takes which format, and empty or filled quantized layers in its place.

Never quantized: the token table (a lookup reads one row of it, so fewer bits would save no time), the router, norms,
positions and biases (small, and they decide much), the patch projection, and `kv_b_proj` of latent attention (its
absorbed form multiplies by slices of the matrix in both directions).

A plain checkpoint is quantized tensor by tensor while it is read: empty layers are put into a model on the meta device
with `allocate_quantized`, given memory, and filled with `quantize_tensor`. So the plain weights are never held
together. `quantize_model` is for a model that is there already, `quantize_base` for one that trains an adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vl2.errors import UserError
from vl2.model.moe import Experts
from vl2.quant.base_modules import BaseKind, QuantizedBaseExperts, QuantizedBaseLinear
from vl2.quant.formats import KINDS, Kind
from vl2.quant.modules import QuantizedExperts, QuantizedLinear

SchemeName = Literal["int8", "int4"]
SCHEME_NAMES: tuple[SchemeName, ...] = get_args(SchemeName)

# The beginnings of module names, longest first where one begins another.
LAYERS, HEAD, VISION, PROJECTOR = "language.model.layers.", "language.lm_head", "vision.blocks.", "projector.layers."
KEPT = ("kv_b_proj",)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The form of each part; None leaves a part as it is."""

    layers: Kind | None  # attention, dense layers, routed and shared experts of the language model
    head: Kind | None
    vision: Kind | None
    projector: Kind | None

    def kind_of(self, module_name: str) -> Kind | None:
        """Return the form of a linear layer or a stack of experts."""
        if module_name.rpartition(".")[2] in KEPT:
            return None
        parts = {LAYERS: self.layers, HEAD: self.head, VISION: self.vision, PROJECTOR: self.projector}
        return next((kind for start, kind in parts.items() if module_name.startswith(start)), None)


SCHEMES: dict[SchemeName, Scheme] = {
    "int8": Scheme(layers="int8", head="int8", vision="int8", projector="int8"),
    # The encoder has an eighth of the weights of the smallest size and runs once per image: in 8 bits it can use
    # 8-bit products, which 4 bits cannot, and what a document says hangs on its details.
    "int4": Scheme(layers="int4", head="int4", vision="int8", projector="int8"),
}


def scheme_named(name: str) -> Scheme:
    """Return a scheme by its name; UserError where there is none."""
    for known in SCHEME_NAMES:
        if name == known:
            return SCHEMES[known]
    raise UserError(f"weights must be one of {', '.join(SCHEME_NAMES)}, got {name!r}")


def quantized_modules(model: nn.Module, scheme: Scheme) -> dict[str, Kind]:
    """Return the modules of a plain model that the scheme quantizes, by name, and the form of each."""
    found: dict[str, Kind] = {}
    for name, module in model.named_modules():
        kind = scheme.kind_of(name)
        if kind is not None and isinstance(module, nn.Linear | Experts):
            found[name] = kind
    return found


# The layers that hold the weights under an adapter in few bits. Vision, projector, token table, head and router stay as
# they are: small beside the rest, and sensitive.
WITHIN = "language.model.layers."


def allocate_quantized(model: nn.Module, scheme: Scheme) -> list[str]:
    """Put empty quantized layers in the place of those that the scheme names; return the names. In place.

    They lie on the device of what they replace, so a model on the meta device stays there.
    """
    kinds = quantized_modules(model, scheme)
    for name, kind in kinds.items():
        module = model.get_submodule(name)
        make = QuantizedExperts.like if isinstance(module, Experts) else QuantizedLinear.like
        _replace(model, name, module, make(module, kind))  # type: ignore[arg-type]  # asked for by quantized_modules
    return list(kinds)


@torch.no_grad()
def quantize_model(model: nn.Module, scheme: Scheme, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Quantize a loaded model, layer by layer; return the names of the layers. In place."""
    kinds = quantized_modules(model, scheme)
    for done, (name, kind) in enumerate(kinds.items(), 1):
        module = model.get_submodule(name)
        with _named(name):
            if isinstance(module, Experts):
                experts = QuantizedExperts.like(module, kind)
                for expert in range(experts.num_experts):
                    experts.quantize_from("gate_up", expert, module.gate_up_proj[expert])
                    experts.quantize_from("down", expert, module.down_proj[expert])
                _replace(model, name, module, experts)
            elif isinstance(module, nn.Linear):
                linear = QuantizedLinear.like(module, kind)
                linear.quantize_from(module.weight)
                _replace(model, name, module, linear)
        if progress is not None:
            progress(done, len(kinds))
    return list(kinds)


def quantize_tensor(
    model: nn.Module,
    parameter: str,
    weight: Tensor,
    *,
    expert: int | None = None,
    part: int | None = None,
    name: str | None = None,
) -> None:
    """Quantize one tensor into its layer. In place.

    `parameter` is its name in the plain model; of stacked experts it is the matrix of one, and `part` tells gate (0)
    and up projection (1). Errors call it `name`.
    """
    owner, _, leaf = parameter.rpartition(".")
    module = model.get_submodule(owner)
    with _named(name or parameter):
        if isinstance(module, QuantizedLinear) and leaf == "weight":
            module.quantize_from(weight)
        else:
            assert isinstance(module, QuantizedExperts), f"{parameter} has no place in the model"
            assert expert is not None, f"{parameter} is not one expert's"
            module.quantize_from("gate_up" if leaf == "gate_up_proj" else "down", expert, weight, part)


def quantize_base(model: nn.Module, kind: BaseKind, dtype: torch.dtype | None = None) -> int:
    """Replace the linear layers and experts of the language model by ones that train an adapter over few bits.

    Returns how many. In place. The adapter must be on the model already: its layers keep their place, and the weights
    under them are replaced. `dtype` is what the weights are made as when they are needed; None for the type they have.
    """
    if kind not in get_args(BaseKind):
        raise UserError(f"the base must be held as one of {', '.join(get_args(BaseKind))}, got {kind!r}")
    found = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(WITHIN) and isinstance(module, nn.Linear | Experts)
    }
    for name, module in found.items():
        make = QuantizedBaseExperts if isinstance(module, Experts) else QuantizedBaseLinear
        _replace(model, name, module, make(module, kind, dtype))  # type: ignore[arg-type]  # the kind of module was just asked
    return len(found)


def quantization_of(model: nn.Module) -> str | None:
    """Return the smallest format that a model which answers holds weights in; None for a plain model."""
    kinds = {module.kind for module in model.modules() if isinstance(module, QuantizedLinear | QuantizedExperts)}
    return next((kind for kind in reversed(KINDS) if kind in kinds), None)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in an error which weight it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _replace(model: nn.Module, name: str, module: nn.Module, by: nn.Module) -> None:
    model.set_submodule(name, by.train(module.training))
