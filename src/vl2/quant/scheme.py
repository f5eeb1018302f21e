"""Which part of the model takes which form.

Never quantized: the token table (a lookup reads one row of it, so fewer bits would save no time), the router, norms,
positions and biases (small, and they decide much), the patch projection, and `kv_b_proj` of latent attention (its
absorbed form multiplies by slices of the matrix in both directions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from vl2.errors import UserError
from vl2.model.moe import Experts
from vl2.quant.formats import Kind

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
