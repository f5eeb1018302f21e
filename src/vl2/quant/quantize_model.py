"""Quantize a model: choose the format of each part, and replace plain layers by quantized ones.

Some weights are never quantized. A lookup reads one row of the token table, so fewer bits would save no time. The
router, norms, position embeddings and biases are small, and errors in them have a large effect. The patch projection
stays plain, and so does `kv_b_proj` of latent attention, whose absorbed form multiplies by slices of the matrix in both
directions.

A plain checkpoint is quantized tensor by tensor while it is read: `allocate_quantized` puts empty layers into a model
on the meta device, the model gets memory, and `quantize_tensor` fills the layers. The plain weights are therefore never
in memory all at once. `quantize_model` quantizes a model that is already loaded, and `quantize_base` one that trains an
adapter.
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

# Prefixes of module names.
LAYERS, HEAD, PROJECTOR = "language.model.layers.", "language.lm_head", "projector.layers"
VISION = ("vision.blocks.", "vision.sam.blocks.", "vision.clip.transformer.layers.", "vision.query_encoder.layers.")
KEPT = ("kv_b_proj",)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The format of each part of a model; None leaves a part plain."""

    layers: Kind | None  # attention, dense layers, routed and shared experts of the language model
    head: Kind | None
    vision: Kind | None
    projector: Kind | None

    def kind_of(self, module_name: str) -> Kind | None:
        """Return the format of the linear layer or stack of experts with this name; None if it stays plain."""
        if module_name.rpartition(".")[2] in KEPT:
            return None
        parts = (LAYERS, self.layers), (HEAD, self.head), (VISION, self.vision), (PROJECTOR, self.projector)
        return next((kind for start, kind in parts if module_name.startswith(start)), None)


SCHEMES: dict[SchemeName, Scheme] = {
    "int8": Scheme(layers="int8", head="int8", vision="int8", projector="int8"),
    # Even in the smallest size, the encoder has only an eighth of the weights, and it runs once per image. In 8 bits it
    # can use 8-bit products, which 4-bit weights cannot, and reading documents depends on its precision.
    "int4": Scheme(layers="int4", head="int4", vision="int8", projector="int8"),
}


def scheme_named(name: str) -> Scheme:
    """Return the scheme with this name. Raise UserError if there is none."""
    for known in SCHEME_NAMES:
        if name == known:
            return SCHEMES[known]
    raise UserError(f"weights must be one of {', '.join(SCHEME_NAMES)}, got {name!r}")


def quantized_modules(model: nn.Module, scheme: Scheme) -> dict[str, Kind]:
    """Return the names of the modules of a plain model that the scheme quantizes, with the format of each."""
    found: dict[str, Kind] = {}
    for name, module in model.named_modules():
        kind = scheme.kind_of(name)
        if kind is not None and isinstance(module, nn.Linear | Experts):
            found[name] = kind
    return found


# Prefix of the modules that `quantize_base` quantizes. Vision, projector, token table, head and router stay plain,
# because they are small and sensitive to errors.
WITHIN = "language.model.layers."


def allocate_quantized(model: nn.Module, scheme: Scheme) -> list[str]:
    """Replace the layers that the scheme quantizes by uninitialized quantized layers, in place; return their names.

    The new layers are on the same device as the old ones, so a model on the meta device stays there.
    """
    kinds = quantized_modules(model, scheme)
    for name, kind in kinds.items():
        module = model.get_submodule(name)
        make = QuantizedExperts.like if isinstance(module, Experts) else QuantizedLinear.like
        _replace(model, name, module, make(module, kind))  # type: ignore[arg-type]  # asked for by quantized_modules
    return list(kinds)


@torch.no_grad()
def quantize_model(model: nn.Module, scheme: Scheme, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Quantize a loaded model in place, layer by layer, and return the names of the quantized layers.

    `progress` is called with the number of layers done and their total.
    """
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
    """Quantize one tensor into its quantized layer, in place.

    `parameter` is the name in the plain model. For stacked experts, `weight` is the matrix of one `expert`, and `part`
    is 0 for the gate projection and 1 for the up projection. Error messages use `name`.
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
    """Quantize the language model's frozen linear layers and experts under an adapter (QLoRA), in place.

    Return the number of quantized layers. Attach the adapter first: its layers stay, and only their base layers are
    replaced. `dtype` is the type of the dequantized weights; None keeps the type of the plain weights. Raise UserError
    for an unknown `kind`.
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
    """Return the smallest quantized format in an inference model, "int8" or "int4"; None for a plain model."""
    kinds = {module.kind for module in model.modules() if isinstance(module, QuantizedLinear | QuantizedExperts)}
    return next((kind for kind in reversed(KINDS) if kind in kinds), None)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Prefix a UserError raised inside the context with the name of the weight."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _replace(model: nn.Module, name: str, module: nn.Module, by: nn.Module) -> None:
    model.set_submodule(name, by.train(module.training))
