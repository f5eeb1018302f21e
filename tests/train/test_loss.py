"""The chunked loss: equal to the plain one, and never with the logits of more than a chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vl2.train.loss import next_token_loss

S, D, V = 150, 12, 37


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(S, D, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(V, (S,), generator=generator)
    labels[torch.rand(S, generator=generator) < 0.3] = -100
    labels[0] = -100
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    return states, labels, weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_the_sum_and_its_gradients_are_those_of_the_plain_loss(chunk: int, dtype: torch.dtype) -> None:
    states, labels, weight = inputs(dtype)
    total, each = next_token_loss(states, labels, weight, chunk)
    gradients = torch.autograd.grad(total * 0.25, (states, weight))
    logits = F.linear(states, weight).float()
    plain = F.cross_entropy(logits[:-1], labels[1:], reduction="none")
    expected = torch.autograd.grad(plain.sum() * 0.25, (states, weight))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, plain.sum())
    torch.testing.assert_close(each, plain[labels[1:] != -100])
    assert not each.requires_grad
    # A bfloat16 weight sums over all rows: the plain way rounds once, at the end, as ours does.
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.02}
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_a_frozen_weight_gets_no_gradient() -> None:
    states, labels, weight = inputs()
    weight.requires_grad_(False)
    total, _ = next_token_loss(states, labels, weight)
    total.backward()
    assert weight.grad is None
    assert states.grad is not None


def test_without_a_trained_token_the_sum_is_zero_with_gradients_of_zeros() -> None:
    states, labels, weight = inputs()
    total, each = next_token_loss(states, torch.full_like(labels, -100), weight)
    total.backward()
    assert (float(total), len(each)) == (0.0, 0)
    assert states.grad is not None
    assert weight.grad is not None
    assert not states.grad.any()
    assert not weight.grad.any()


class Largest(TorchDispatchMode):
    """Remembers the most rows of any tensor as wide as the vocabulary, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.ndim == 2 and tensor.shape[1] == V:
                self.rows = max(self.rows, tensor.shape[0])
        return out


def test_no_tensor_holds_the_logits_of_more_than_a_chunk() -> None:
    states, labels, weight = inputs()
    assert int((labels != -100).sum()) > 64
    with Largest() as largest:
        total, _ = next_token_loss(states, labels, weight, 32)
        total.backward()
    assert 0 < largest.rows <= 64  # a chunk, rounded up
    with Largest() as plain:
        F.cross_entropy(F.linear(states, weight).float()[:-1], labels[1:]).backward()
    assert plain.rows == S
