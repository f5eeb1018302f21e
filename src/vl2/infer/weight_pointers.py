"""Pointers to the weights of a module, for kernels that read them directly, and the plans that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vl2.kernels import Library, load_kernels
from vl2.kernels.prefill import Weights
from vl2.kernels.structures import BF16, QUANTIZED, MatrixC, StackC
from vl2.model.float_linear import is_plain_linear
from vl2.model.memory_mapped_experts import MemoryMappedExperts
from vl2.quant.modules import QuantizedLinear


class Unsupported(Exception):
    """The kernels do not run this model."""


@dataclass(frozen=True)
class _Pointer:
    """The address of a tensor, and where it hangs in the model."""

    owner: dict[str, Tensor | None]
    name: str
    tensor: Tensor
    address: int


class WeightPointers:
    """Pointers to weights on the CPU, and whether they still hold."""

    def __init__(self, root: nn.Module) -> None:
        self._pointers: list[_Pointer] = []
        self._apart: list[Weights] = []  # keeps the lists of addresses that the kernels follow
        self._modules: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []
        for parent in root.modules():
            self._modules += [(parent._modules, name, child) for name, child in parent._modules.items() if child]

    def are_current(self) -> bool:
        """Whether all weights are where they were, and no module is another one."""
        return all(
            pointer.owner.get(pointer.name) is pointer.tensor and pointer.tensor.data_ptr() == pointer.address
            for pointer in self._pointers
        ) and all(owner.get(name) is module for owner, name, module in self._modules)

    def are_followed(self) -> bool:
        """Whether somebody is told what goes into a module or what comes out."""
        return any(module._forward_hooks or module._forward_pre_hooks for *_, module in self._modules)

    def address(
        self, module: nn.Module, name: str, tensor: Tensor | None, dtype: torch.dtype | None = torch.bfloat16
    ) -> int:
        """Return the address of a parameter, or of a quantised buffer where no tensor is given.

        Raises Unsupported where it is of another type, not contiguous or on a device.
        """
        if tensor is None:
            tensor, dtype = module.get_buffer(name), None
        if tensor.device.type != "cpu" or not tensor.is_contiguous() or (dtype is not None and tensor.dtype != dtype):
            raise Unsupported(f"a weight of type {tensor.dtype} on {tensor.device}")
        owner = module._parameters if name in module._parameters else module._buffers
        self._pointers.append(_Pointer(owner, name, tensor, tensor.data_ptr()))  # type: ignore[arg-type]
        return tensor.data_ptr()

    def apart(self, experts: MemoryMappedExperts) -> Weights:
        """Return the gate, up and down projections of experts that lie apart. Raises Unsupported as `address` does."""
        for name, matrix in experts.named_parameters():
            self.address(experts, name, matrix)
        self._apart.append(stacks_apart(experts))
        return self._apart[-1]

    def matrix(self, layer: nn.Module) -> MatrixC:
        """Return the weight of a linear layer, plain or quantised. Raises Unsupported for any other layer."""
        if is_plain_linear(layer):
            address = self.address(layer, "weight", layer.weight)
            return MatrixC(BF16, layer.out_features, layer.in_features, address, None)
        if isinstance(layer, QuantizedLinear):
            codes, scales = (self.address(layer, leaf, None) for leaf in ("codes", "scales"))
            return MatrixC(QUANTIZED[layer.kind], layer.out_features, layer.in_features, codes, scales)
        raise Unsupported(f"a layer of type {type(layer).__name__}")


def stacks_apart(experts: MemoryMappedExperts) -> Weights:
    """Return the gate, up and down projections of experts in bfloat16 that lie apart."""
    (D, F), (gate_E, up_E, down_E) = experts.pair(0)[1].shape, experts.addresses()
    return StackC.apart(F, D, gate_E), StackC.apart(F, D, up_E), StackC.apart(D, F, down_E)


class Plan(Protocol):
    """What knows where the weights of a module lie."""

    def is_current(self) -> bool:
        """Whether they still lie there."""


M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=Plan)


class Plans(Generic[M, P]):
    """The plans of modules, each made when it is first asked for, and anew when a weight has been moved or replaced."""

    def __init__(self, make: Callable[[M, Library], P]) -> None:
        """`make` raises Unsupported where the kernels do not run a module."""
        self._make = make
        self._made: WeakKeyDictionary[M, P | None] = WeakKeyDictionary()

    def of(self, module: M) -> P | None:
        """Return the plan of a module; None where there are no kernels, or none for it."""
        plan, kernels = self._made.get(module), load_kernels()
        if plan is not None and plan.is_current():
            return plan
        if kernels is None:
            return None
        try:
            plan = self._make(module, kernels)
        except Unsupported:
            plan = None
        self._made[module] = plan
        return plan
