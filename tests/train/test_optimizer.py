"""AdamW on masters: torch's own in float32, close to it in bfloat16, and the same bits after a resumption."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.devices import CPU_AND_CARD
from vl2.train import optimizer as optimizer_module
from vl2.train.optimizer import MasterAdamW, sum_of_squares
from vl2.train.parts import ParameterGroup
from vl2.train.ranks import ONE

BETAS, EPS = (0.9, 0.95), 1e-8


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((6, 4), (4,), (3, 2, 5))]


def groups(given: list[nn.Parameter]) -> list[ParameterGroup]:
    return [
        ParameterGroup(names=("a", "c"), parameters=(given[0], given[2]), rate_multiplier=1.0, weight_decay=0.1),
        ParameterGroup(names=("b",), parameters=(given[1],), rate_multiplier=0.1, weight_decay=0.0),
    ]


def make(given: list[nn.Parameter], is_bfloat16: bool = False) -> MasterAdamW:
    return MasterAdamW(groups(given), betas=BETAS, eps=EPS, is_bfloat16=is_bfloat16)


def loss_of(given: list[nn.Parameter], step: int) -> Tensor:
    return sum(((p.float() - 0.3 * step) * (i + 1)).square().sum() for i, p in enumerate(given))  # type: ignore[return-value]


def train(given: list[nn.Parameter], optimizer: MasterAdamW, steps: range) -> None:
    for step in steps:
        loss_of(given, step).backward()
        optimizer.step(0.01)
        optimizer.zero()


def test_in_float32_the_updates_are_those_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs[0], theirs[2]], "lr": 0.01, "weight_decay": 0.1},
            {"params": [theirs[1]], "lr": 0.001, "weight_decay": 0.0},
        ],
        betas=BETAS,
        eps=EPS,
    )
    optimizer = make(ours)
    for step in range(20):
        train(ours, optimizer, range(step, step + 1))
        adamw.zero_grad()
        loss_of(theirs, step).backward()
        adamw.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_gradients_add_up_in_float32_and_are_freed() -> None:
    given = parameters(torch.bfloat16)
    optimizer = make(given)
    for _ in range(300):
        (given[1] * torch.tensor(1.0, dtype=torch.bfloat16)).sum().backward()
    assert all(p.grad is None for p in given)
    # Beyond 256 a bfloat16 sum of ones stands still.
    assert optimizer.grad_norm() == pytest.approx(300 * 4**0.5)
    optimizer.scale(0.5)
    assert optimizer.grad_norm() == pytest.approx(150 * 4**0.5)
    optimizer.zero()
    assert optimizer.grad_norm() == 0.0


@pytest.mark.parametrize("device", CPU_AND_CARD)
@pytest.mark.parametrize("shape", [(40_000_000,), (40_000, 1001), (3, 333)], ids=str)
def test_the_norm_of_many_gradients_is_that_of_float64(device: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.zeros(shape, device=device))
    group = ParameterGroup(names=("a",), parameters=(parameter,), rate_multiplier=1.0, weight_decay=0.0)
    optimizer = MasterAdamW([group], betas=BETAS, eps=EPS, ranks=replace(ONE, device=torch.device(device)))
    gradient = torch.randn(shape, generator=generator) * 1e-3
    parameter.backward(gradient.to(device))
    # In pieces, so that the test needs no second copy in float64.
    exact = sum(float(piece.double().square().sum()) for piece in gradient.flatten().split(1 << 20)) ** 0.5
    assert optimizer.grad_norm() == pytest.approx(exact, rel=1e-6)


def test_the_norm_does_not_depend_on_how_a_gradient_lies_in_memory() -> None:
    values = torch.randn(300, 500, generator=torch.Generator().manual_seed(1))
    exact = float(values.double().square().sum())
    for tensors in (
        [values],
        [values.T],
        list(values.split(7)),
        [values[:, :400], values[:, 400:]],
        [values.new_zeros(0), values],
    ):
        assert float(sum_of_squares(tensors)) == pytest.approx(exact, rel=1e-6)


def test_a_rank_that_trains_nothing_can_clip_and_step() -> None:
    optimizer = MasterAdamW([], betas=BETAS, eps=EPS)
    assert optimizer.grad_norm() == 0.0
    optimizer.scale(0.5)
    optimizer.step(0.01)


def test_a_bfloat16_model_follows_the_trajectory_of_float32() -> None:
    narrow = parameters(torch.bfloat16)
    wide = [nn.Parameter(p.detach().float()) for p in narrow]
    for given in (narrow, wide):
        train(given, make(given), range(100))
    optimizer_free = [p.detach().float() for p in narrow]
    for ours, theirs in zip(optimizer_free, wide, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=0.05, rtol=0.02)


def test_small_updates_are_kept_by_masters_and_on_average_by_random_rounding() -> None:
    for is_bfloat16 in (False, True):
        weight = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        group = ParameterGroup(names=("w",), parameters=(weight,), rate_multiplier=1.0, weight_decay=0.0)
        optimizer = MasterAdamW([group], betas=BETAS, eps=EPS, is_bfloat16=is_bfloat16)
        for _ in range(40):
            weight.sum().backward()
            optimizer.step(1e-4)  # each step is a fortieth of the distance between bfloat16 numbers below 1
            optimizer.zero()
        assert float(weight.float().mean()) == pytest.approx(1 - 40e-4, abs=8e-4)


def test_the_bfloat16_optimizer_holds_nothing_wider() -> None:
    given = parameters(torch.bfloat16)
    optimizer = make(given, is_bfloat16=True)
    train(given, optimizer, range(3))
    state = optimizer.state_dict()
    tensors = [t for name in ("a", "b", "c") for t in state[name].values()]
    assert {t.dtype for t in tensors} == {torch.bfloat16}
    assert state["a"]["master"].data_ptr() == given[0].data_ptr()


@pytest.mark.parametrize("is_bfloat16", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_has_the_same_bits(dtype: torch.dtype, is_bfloat16: bool) -> None:
    whole, first, second = (parameters(dtype) for _ in range(3))
    train(whole, make(whole, is_bfloat16), range(8))
    stopped = make(first, is_bfloat16)
    train(first, stopped, range(5))
    saved = stopped.state_dict()
    copy = {k: {n: t.clone() for n, t in v.items()} if isinstance(v, dict) else v for k, v in saved.items()}
    resumed = make(second, is_bfloat16)
    resumed.load_state_dict(copy)
    train(second, resumed, range(5, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def test_bfloat16_sums_of_gradients_keep_what_nearest_rounding_drops() -> None:
    weight = nn.Parameter(torch.zeros(4000, dtype=torch.bfloat16))
    group = ParameterGroup(names=("w",), parameters=(weight,), rate_multiplier=1.0, weight_decay=0.0)
    optimizer = MasterAdamW([group], betas=BETAS, eps=EPS, is_bfloat16=True)
    for size in (256.0, *[0.5] * 64):  # the distance between bfloat16 numbers above 256 is 2
        (weight * size).sum().backward()
    ((_, total),) = optimizer.gradients()
    assert total.dtype == torch.bfloat16
    assert float(total.float().mean()) == pytest.approx(256 + 32, abs=0.5)


def test_the_seed_decides_the_rounding() -> None:
    results = []
    for seed in (0, 0, 1):
        given = parameters(torch.bfloat16)
        train(given, MasterAdamW(groups(given), betas=BETAS, eps=EPS, is_bfloat16=True, seed=seed), range(3))
        results.append(torch.cat([p.detach().flatten() for p in given]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_size_of_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for piece in (1 << 24, 7):
        monkeypatch.setattr(optimizer_module, "_PIECE", piece)
        given = parameters(torch.bfloat16)
        train(given, make(given, is_bfloat16=True), range(3))
        results.append([p.detach().clone() for p in given])
    for one, other in zip(*results, strict=True):
        # The vector instructions of AdamW round the tail of a piece otherwise than its middle.
        torch.testing.assert_close(one, other, atol=0, rtol=2**-7)
        assert float((one != other).float().mean()) < 0.1


def test_a_state_of_other_parameters_is_refused() -> None:
    optimizer = make(parameters())
    state = optimizer.state_dict()
    state["d"] = state.pop("a")
    with pytest.raises(AssertionError, match="other parameters: a"):
        optimizer.load_state_dict(state)


def test_a_weight_without_gradient_decays_and_nothing_else() -> None:
    given = parameters()
    before = [p.detach().clone() for p in given]
    make(given).step(0.01)
    assert torch.equal(given[1], before[1])
    torch.testing.assert_close(given[0].detach(), before[0] * (1 - 0.01 * 0.1))


def test_every_step_rounds_by_other_random_bits() -> None:
    weight = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    group = ParameterGroup(names=("w",), parameters=(weight,), rate_multiplier=1.0, weight_decay=0.0)
    optimizer = MasterAdamW([group], betas=BETAS, eps=EPS, is_bfloat16=True)
    down = []
    for _ in range(2):
        with torch.no_grad():
            weight.fill_(1.0)
        weight.sum().backward()
        optimizer.step(1e-3)  # a quarter of the distance between bfloat16 numbers below 1
        optimizer.zero()
        down.append(weight < 1)
    assert all(150 < int(d.sum()) < 350 for d in down)
    assert not torch.equal(*down)


def test_weights_and_buffers_are_freed_with_the_model_and_the_optimizer() -> None:
    given = parameters()
    optimizer = make(given)
    train(given, optimizer, range(1))
    held = [weakref.ref(given[0]), weakref.ref(next(iter(optimizer.gradients()))[1])]
    del given, optimizer
    gc.collect()
    assert [one() for one in held] == [None, None]
