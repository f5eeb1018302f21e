"""Pointers to the weights of a module, for kernels that read them directly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vl2.kernels.prefill import Weights
from vl2.kernels.structures import BF16, QUANTIZED, MatrixC, StackC
from vl2.model.memory_mapped_experts import MemoryMappedExperts
from vl2.quant.modules import QuantizedLinear
from vl2.runtime.linear import is_plain_linear


class Unsupported(Exception):
    """The kernels do not run this model; the message says why."""


class WeightPointers:
    """Pointers to weights on the CPU, and what keeps them valid."""

    def __init__(self, root: nn.Module) -> None:
        """Raise Unsupported where somebody follows what a module gets or gives: a single call runs no module."""
        for name, module in root.named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise Unsupported(f"{name or type(module).__name__} has a hook")
        self._kept: list[Tensor | Weights] = []  # memory that a pointer leads to, whatever becomes of the module

    def address(self, tensor: Tensor, dtype: torch.dtype | None = torch.bfloat16) -> int:
        """Return where a weight lies. Raise Unsupported where it is of another type, not contiguous or on a device."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Unsupported(f"a weight is a {type(tensor).__name__} on {tensor.device} that kernels cannot read")
        if dtype is not None and tensor.dtype != dtype:
            raise Unsupported(f"a weight is in {tensor.dtype}")
        self._kept.append(tensor.detach())
        return tensor.data_ptr()

    def apart(self, experts: MemoryMappedExperts) -> Weights:
        """Return the gate, up and down projections of experts that lie apart. Raises Unsupported as `address` does."""
        for matrix in experts.parameters():
            self.address(matrix)
        weights = stacks_apart(experts)
        self._kept.append(weights)  # it has the lists of addresses that the kernels follow
        return weights

    def matrix(self, layer: nn.Module) -> MatrixC:
        """Return the weight of a linear layer, plain or quantized. Raises Unsupported for any other layer."""
        if is_plain_linear(layer):
            return MatrixC(BF16, layer.out_features, layer.in_features, self.address(layer.weight), None)
        if isinstance(layer, QuantizedLinear):
            codes, scales = (self.address(t, None) for t in (layer.codes, layer.scales))
            return MatrixC(QUANTIZED[layer.kind], layer.out_features, layer.in_features, codes, scales)
        raise Unsupported(f"a layer is a {type(layer).__name__}")


def stacks_apart(experts: MemoryMappedExperts) -> Weights:
    """Return the gate, up and down projections of experts in bfloat16 that lie apart."""
    (D, F), (gate_E, up_E, down_E) = experts.pair(0)[1].shape, experts.addresses()
    return StackC.apart(F, D, gate_E), StackC.apart(F, D, up_E), StackC.apart(D, F, down_E)
