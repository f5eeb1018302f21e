"""Stochastic rounding: unbiased, to a neighbor only, and the same for an element wherever it lies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vl2.train.rounding import random_bits, round_at_random, seed_of


def bits_of(values: Tensor, seed: int) -> Tensor:
    return random_bits(values.shape, [0] * values.ndim, values.shape, seed, values)


def test_rounding_keeps_what_bfloat16_holds_and_the_mean_of_what_it_does_not() -> None:
    exact = torch.randn(100, generator=torch.manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(round_at_random(exact.float(), bits_of(exact, 1)), exact)
    for sign in (1.0, -1.0):
        between = torch.full((20000,), sign * (1.0 + 2**-9))  # a quarter of the way from 1 to the next, 1 + 2^-7
        rounded = round_at_random(between, bits_of(between, 1)).float()
        assert set(rounded.tolist()) == {sign, sign * (1.0 + 2**-7)}
        assert float(rounded.mean()) == pytest.approx(sign * (1.0 + 2**-9), abs=1e-4)


def test_infinity_and_nan_stay() -> None:
    values = torch.tensor([float("inf"), -float("inf"), float("nan")] * 50)
    rounded = round_at_random(values, bits_of(values, 3)).float()
    assert torch.equal(rounded.isnan(), values.isnan())
    assert torch.equal(rounded[values.isinf()], values[values.isinf()])


def test_a_block_has_the_bits_of_its_place_in_the_whole() -> None:
    whole = random_bits((6, 5, 4), (0, 0, 0), (6, 5, 4), 7, torch.zeros(0))
    assert 0 <= int(whole.min()) <= int(whole.max()) < 1 << 32
    for rows, columns, depth in (((0, 3), (0, 5), (0, 4)), ((2, 6), (1, 4), (3, 4)), ((6, 6), (0, 5), (0, 4))):
        ranges = (rows, columns, depth)
        block = random_bits(
            [end - start for start, end in ranges], [start for start, _ in ranges], (6, 5, 4), 7, torch.zeros(0)
        )
        assert torch.equal(block, whole[tuple(slice(*one) for one in ranges)])


def test_bits_are_even_and_differ_between_seeds_and_neighbors() -> None:
    one, other = (random_bits((1 << 16,), (0,), (1 << 16,), seed_of("w", step), torch.zeros(0)) for step in (1, 2))
    for bits in (one, other):
        for place in range(32):
            # The standard deviation of such a mean is 0.002.
            assert float((bits >> place & 1).double().mean()) == pytest.approx(0.5, abs=0.01)
    scaled = [(bits & 0xFFFF).double() / 65536 for bits in (one, other)]
    pairs = [(scaled[0], scaled[1]), (scaled[0][1:], scaled[0][:-1]), (scaled[0], (one >> 16).double() / 65536)]
    for a, b in pairs:
        assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 0.02
