"""AdamW with float32 master weights, independent of the compute type of the model.

A bfloat16 weight cannot represent a change of a thousandth of itself, and a bfloat16 sum of gradients loses small
terms. Therefore each gradient is added to a float32 buffer and freed as soon as it is computed, AdamW updates float32
masters, and the model gets rounded copies of them. A float32 parameter is its own master.

With `is_bfloat16`, masters, moments and gradient sums are bfloat16 and the arithmetic is float32: 8 bytes a parameter.
Everything that accumulates small changes (masters, moments, the sum of gradients over packs) is rounded stochastically,
because nearest rounding would always drop them. A bfloat16 parameter is its own master; a float32 parameter (the
routers') has a bfloat16 master. `rounding.py` explains where the random bits come from.

A group may use Muon instead of AdamW (see `muon.py`). Muon needs whole matrices, so it does not support sharding.

Source: arXiv 1711.05101 (AdamW).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vl2.errors import UserError
from vl2.train.muon import muon_, split_joined
from vl2.train.parts import NORM_PARTS, ParameterGroup, norm_part_of
from vl2.train.ranks import ONE, Ranks
from vl2.train.rounding import random_bits, round_at_random, seed_of
from vl2.train.shard import local, origin, sum_gradients_

_NORM_ROW = 256  # elements; as fast as a single sum, with a relative error of about 1e-8
_PIECE = 1 << 24  # elements of a bfloat16 parameter that are updated at a time, in float32


class MasterAdamW:
    """Accumulates the gradients of its parameters and updates them. Of sharded parameters it holds this rank's part."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        betas: tuple[float, float],
        eps: float,
        is_bfloat16: bool = False,
        ranks: Ranks = ONE,
        seed: int = 0,
    ) -> None:
        """Create the state. `seed` is that of stochastic rounding."""
        self._betas, self._eps, self._is_bfloat16, self._ranks = betas, eps, is_bfloat16, ranks
        self._seed = seed
        self._groups = [_Group(group, torch.bfloat16 if is_bfloat16 else torch.float32) for group in groups]
        self._num_steps = 0
        for name, weight in self._named_weights():
            weight.seed = seed_of(seed, name, "gradient")
            weight.parameter.register_post_accumulate_grad_hook(_take_gradient_of(weight))
        if is_bfloat16:
            with torch.no_grad():
                for group in self._groups:
                    group.copy_masters()  # so that the first step, too, runs with the weights that are updated

    @torch.no_grad()
    def sum_over_ranks(self) -> None:
        """Sum the gradients over all ranks; sharded ones are already summed. All ranks call it once per step."""
        self._clear_empty()
        sum_gradients_((weight.gradient for weight in self._weights() if not weight.is_sharded), self._ranks)

    def grad_norm(self) -> float:
        """Return the norm of all gradients of the whole model. All ranks must call it together."""
        return math.sqrt(sum(norm**2 for norm in self.grad_norms().values()))

    @torch.no_grad()
    def grad_norms(self) -> dict[str, float]:
        """Return the norm of the gradients of each of NORM_PARTS in the whole model. All ranks must call it together.

        A part without trained weights has the norm 0.
        """
        self._clear_empty()
        whole, parts = self._squares(is_sharded=False), self._squares(is_sharded=True)
        return dict(zip(NORM_PARTS, (whole + self._ranks.sum_(parts)).sqrt().tolist(), strict=True))

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply all gradients."""
        self._clear_empty()
        gradients = [weight.gradient for weight in self._weights()]
        if gradients:  # a pipeline rank may hold frozen layers only
            torch._foreach_mul_(gradients, factor)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the weights by the gradients accumulated since `zero`.

        Weight decay and rate multipliers are set per group. A group without a parameter that requires a gradient is
        skipped.
        """
        self._clear_empty()
        self._num_steps += 1
        for group in self._groups:
            if not any(weight.parameter.requires_grad for weight in group.weights):
                continue
            rate = learning_rate * group.rate_multiplier
            if group.is_orthogonal:
                muon_(
                    group.masters,
                    group.gradients,
                    group.first,
                    learning_rate=rate,
                    weight_decay=group.weight_decay,
                    ranks=self._ranks,
                )
            elif self._is_bfloat16:
                self._step_rounded(group, rate)
            else:
                self._update(group, group.masters, group.gradients, group.first, group.second, rate)
            group.copy_masters()

    def zero(self) -> None:
        """Discard the accumulated gradients."""
        for weight in self._weights():
            weight.is_empty = True
            weight.num_added = 0

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the gradient sum of every trained weight; of sharded ones, this rank's part."""
        self._clear_empty()
        for group in self._groups:
            yield from zip(group.names, group.gradients, strict=True)

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the master of every trained weight, sharded as the weight is."""
        for group in self._groups:
            for name, weight in zip(group.names, group.weights, strict=True):
                yield name, weight.state["master"]

    def state_dict(self) -> dict[str, Any]:
        """Return the masters and moments by parameter name, and the number of steps.

        The tensors share memory with the optimizer and are sharded as their parameters are.
        """
        state: dict[str, Any] = {"num_steps": self._num_steps}
        for group in self._groups:
            for name, weight in zip(group.names, group.weights, strict=True):
                state[name] = dict(weight.state)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same parameters, and set the model's weights from the masters."""
        names = {name for group in self._groups for name in group.names}
        strays = names.symmetric_difference(set(state) - {"num_steps"})
        assert not strays, f"the state has other parameters: {sorted(strays)[0]}"
        self._num_steps = int(state["num_steps"])
        for group in self._groups:
            for name, weight in zip(group.names, group.weights, strict=True):
                for key, tensor in weight.state.items():
                    local(tensor).copy_(local(state[name][key]))
            group.copy_masters()

    def _clear_empty(self) -> None:
        """Zero the buffers of weights that received no gradient. Call this before reading the buffers."""
        for weight in self._weights():
            if weight.is_empty:
                weight.gradient.zero_()
                weight.is_empty = False

    def _weights(self) -> Iterator[_Weight]:
        for group in self._groups:
            yield from group.weights

    def _named_weights(self) -> Iterator[tuple[str, _Weight]]:
        for group in self._groups:
            yield from zip(group.names, group.weights, strict=True)

    def _squares(self, *, is_sharded: bool) -> Tensor:
        """Return the sum of squares of each part's gradients on this rank."""
        found: dict[str, list[Tensor]] = {part: [] for part in NORM_PARTS}
        for name, weight in self._named_weights():
            if weight.is_sharded == is_sharded:
                found[norm_part_of(name)].append(weight.gradient)
        none = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        return torch.stack([sum_of_squares(gradients) if gradients else none for gradients in found.values()])

    def _update(
        self,
        group: _Group,
        masters: list[Tensor],
        gradients: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        rate: float,
    ) -> None:
        # `adamw` needs one step counter per parameter and increments it.
        counts = [torch.tensor(float(self._num_steps - 1), device=master.device) for master in masters]
        adamw(
            masters,
            gradients,
            first,
            second,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=rate,
            weight_decay=group.weight_decay,
            eps=self._eps,
            maximize=False,
        )

    def _step_rounded(self, group: _Group, rate: float) -> None:
        """Update one piece of a parameter at a time, so that only one at a time needs float32 copies."""
        for name, weight in zip(group.names, group.weights, strict=True):
            seed = seed_of(self._seed, self._num_steps, name)
            for rows in weight.pieces():
                kept = [tensor[rows] for tensor in (weight.master, weight.first, weight.second)]
                master, first, second = (tensor.float() for tensor in kept)
                self._update(group, [master], [weight.gradient[rows].float()], [first], [second], rate)
                bits = weight.random_bits(rows, seed)
                kept[0].copy_(round_at_random(master, bits))
                bits >>= 16
                kept[1].copy_(round_at_random(first, bits))
                kept[2].copy_(round_at_random(second, bits))


class _Weight:
    """The optimizer's state of one parameter. The tensors in `state` are sharded as the parameter is."""

    def __init__(self, parameter: nn.Parameter, dtype: torch.dtype, *, has_second: bool) -> None:
        self.parameter = parameter
        self.is_sharded = local(parameter) is not parameter
        values = parameter.detach()
        # A parameter of the right type is its own master, which saves a copy.
        master = values if values.dtype == dtype else values.to(dtype)
        first = torch.zeros_like(master)
        second = torch.zeros_like(master) if has_second else master.new_zeros(0)
        self.state = {"master": master, "first": first, "second": second}
        self.master, self.first, self.second = local(master), local(first), local(second)
        self.values = local(values)
        self.gradient = torch.zeros_like(self.master)
        self.is_empty = True  # the buffer's content is stale; the first gradient overwrites it
        self.num_added = 0  # gradients in the buffer
        self.seed = 0  # of the rounding of gradient sums
        self._origin, self._whole = origin(parameter), tuple(parameter.shape)

    def take_gradient(self, parameter: Tensor) -> None:
        """Add the parameter's gradient to the buffer, and free the gradient."""
        assert parameter.grad is not None
        gradient = local(parameter.grad)
        if self.is_empty:
            self.gradient.copy_(gradient)
        elif self.gradient.dtype == torch.float32:
            self.gradient += gradient
        else:
            self._add_rounded(gradient)
        self.is_empty = False
        self.num_added += 1
        parameter.grad = None

    def pieces(self) -> Iterator[slice]:
        """Yield runs of rows with at most `_PIECE` elements each, or with one row."""
        num_rows = len(self.master)
        step = max(1, _PIECE // max(1, math.prod(self.master.shape[1:])))
        for start in range(0, num_rows if self.master.numel() else 0, step):
            yield slice(start, min(start + step, num_rows))

    def random_bits(self, rows: slice, seed: int) -> Tensor:
        """Return random bits for some rows of this rank's part."""
        shape = (rows.stop - rows.start, *self.master.shape[1:])
        first = (self._origin[0] + rows.start, *self._origin[1:])
        return random_bits(shape, first, self._whole, seed, self.master)

    def _add_rounded(self, gradient: Tensor) -> None:
        seed = seed_of(self.seed, self.num_added)
        for rows in self.pieces():
            total = self.gradient[rows].float() + gradient[rows]
            self.gradient[rows] = round_at_random(total, self.random_bits(rows, seed))


def _take_gradient_of(weight: _Weight) -> Callable[[Tensor], None]:
    """Return the gradient hook of a weight's parameter. It does nothing after the optimizer has been freed.

    The hook refers to the weight weakly. PyTorch keeps hooks where Python's garbage collector cannot see them, so a
    strong reference would form a cycle that keeps the model and the optimizer in memory forever.
    """
    method = weakref.WeakMethod(weight.take_gradient)

    def take(parameter: Tensor) -> None:
        take_gradient = method()
        if take_gradient is not None:
            take_gradient(parameter)

    return take


class _Group:
    """The weights of a parameter group, and lists of their tensors for the fused and foreach kernels."""

    def __init__(self, group: ParameterGroup, dtype: torch.dtype) -> None:
        self.names = group.names
        self.rate_multiplier, self.weight_decay = group.rate_multiplier, group.weight_decay
        self.is_orthogonal = group.is_orthogonal
        self.weights = [_Weight(parameter, dtype, has_second=not group.is_orthogonal) for parameter in group.parameters]
        if self.is_orthogonal and any(weight.is_sharded for weight in self.weights):
            raise UserError("Muon works on whole matrices: use AdamW where weights are sharded")
        self.masters = [weight.master for weight in self.weights]
        self.gradients = [weight.gradient for weight in self.weights]
        self.first = [weight.first for weight in self.weights]
        if self.is_orthogonal:
            for tensors in (self.masters, self.gradients, self.first):
                tensors[:] = [split_joined(name, tensor) for name, tensor in zip(self.names, tensors, strict=True)]
        self.second = [weight.second for weight in self.weights]
        apart = [weight for weight in self.weights if weight.values.dtype != weight.master.dtype]
        self._copies, self._copied = [w.values for w in apart], [w.master for w in apart]

    def copy_masters(self) -> None:
        """Copy the masters, rounded to the model's type, to the weights that are not their own masters."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._copied)


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of all elements of tensors on one device, as a float64 scalar there.

    On a CPU `_foreach_norm` adds squares sequentially in float32, which loses 0.3 % with 40 million elements. So on a
    CPU this sums rows of `_NORM_ROW` elements in float32, and the rows in float64. CUDA's kernel sums in a tree.
    """
    if tensors[0].device.type != "cpu":
        return _sum_of_norms(torch._foreach_norm(list(tensors), 2, torch.float32))
    total = torch.zeros((), dtype=torch.float64)
    short: list[Tensor] = []
    for tensor in tensors:
        flat = tensor.reshape(-1)
        even = len(flat) - len(flat) % _NORM_ROW
        if even:
            rows = flat[:even].view(-1, _NORM_ROW)
            total += _sum_of_norms([torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)])
        if even < len(flat):
            short.append(flat[even:])
    return total + _sum_of_norms(torch._foreach_norm(short, 2, torch.float32)) if short else total


def _sum_of_norms(norms: Sequence[Tensor]) -> Tensor:
    norms_n = torch.stack(list(norms))
    return norms_n.double().square().sum()
