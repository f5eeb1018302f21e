"""The cache in int8: how far its numbers are from what was written, and that it is dropped and cut like any cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.configs import small_config
from vl2.config import LanguageConfig, preset
from vl2.errors import UserError
from vl2.model import Cache
from vl2.model.int8_cache import Int8Cache, allocate_cache, check_cache, dequantize_rows, quantize_rows

CPU = torch.device("cpu")
SIZES = ["tiny", "base"]  # multi-head and latent attention


def config_of(size: str) -> LanguageConfig:
    return small_config(size).language_config


def random_positions(cache: Cache, count: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return what attention would write into one layer, with rows of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*t.shape[:-2], count, t.shape[-1]) for t in cache.layers[0] if t.dtype == torch.int8]
    sizes = [10.0 ** torch.randint(-3, 3, (*shape[:-1], 1), generator=generator) for shape in shapes]
    return [
        (torch.randn(shape, generator=generator) * size).to(dtype) for shape, size in zip(shapes, sizes, strict=True)
    ]


def half_a_scale(x: Tensor, widths: tuple[int, ...]) -> Tensor:
    """The largest error that a number may have, from its row alone: half of its largest number by 127."""
    parts = x.double().split(widths, dim=-1)
    bounds = [part.abs().amax(dim=-1, keepdim=True).expand(part.shape) / 254 for part in parts]
    return torch.cat(bounds, dim=-1) * (1 + 1e-5) + 1e-30


@pytest.mark.parametrize("widths", [(16,), (32, 16)])
@given(seed=st.integers(0, 999), exponent=st.integers(-20, 20))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_number_is_off_by_at_most_half_the_scale_of_its_row(
    widths: tuple[int, ...], seed: int, exponent: int
) -> None:
    x = torch.randn(3, 5, sum(widths), generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    codes, scales = quantize_rows(x, widths)
    assert (codes.dtype, scales.dtype, scales.shape) == (torch.int8, torch.float32, (3, 5, len(widths)))
    assert all(part.abs().amax(dim=-1).eq(127).all() for part in codes.int().split(widths, dim=-1))
    error = (dequantize_rows(codes, scales, widths).double() - x.double()).abs()
    assert (error <= half_a_scale(x, widths)).all()


def test_zeros_stay_zeros_and_what_is_not_finite_does_not_become_finite() -> None:
    zeros = torch.zeros(2, 8)
    assert torch.equal(dequantize_rows(*quantize_rows(zeros, (8,)), (8,)), zeros)
    for bad in (float("nan"), float("inf")):
        row = torch.ones(1, 8)
        row[0, 3] = bad
        assert not dequantize_rows(*quantize_rows(row, (8,)), (8,)).isfinite().any()


@pytest.mark.parametrize(
    ("size", "plain", "int8"),
    [
        # 12 layers, keys and values, 10 heads of 128 channels: two bytes a number, or one and a scale for each head.
        ("tiny", 12 * 2 * 10 * 128 * 2, 12 * 2 * 10 * (128 + 4)),
        # A latent of 512 and a rotary key of 64.
        ("small", 27 * (512 + 64) * 2, 27 * (512 + 64 + 2 * 4)),
        ("base", 30 * (512 + 64) * 2, 30 * (512 + 64 + 2 * 4)),
    ],
)
def test_a_position_takes_about_half_the_bytes_of_bfloat16(size: str, plain: int, int8: int) -> None:
    config, meta = preset(size).language_config, torch.device("meta")
    for form, expected in (("auto", plain), ("int8", int8)):
        cache = allocate_cache(check_cache(form, CPU), config, 2, 7, dtype=torch.bfloat16, device=meta)
        assert cache.nbytes == 2 * 7 * expected
        assert cache.capacity == 7
    if size == "tiny":
        assert (plain, int8) == (61_440, 31_680)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_new_positions_of_a_prompt_are_returned_exactly_and_later_as_they_are_held(
    size: str, dtype: torch.dtype
) -> None:
    cache = Int8Cache.empty(config_of(size), 2, 12, device=CPU)
    first, second = (random_positions(cache, 5, seed, dtype) for seed in (0, 1))
    for returned, given_ in zip(cache.write(0, tuple(first)), first, strict=True):
        assert torch.equal(returned, given_)
    cache.advance(5)
    for returned, old, new in zip(cache.write(0, tuple(second)), first, second, strict=True):
        assert returned.dtype == dtype
        assert torch.equal(returned[..., 5:, :], new)
        held = dequantize_rows(*quantize_rows(old, cache.widths), cache.widths)
        assert torch.equal(returned[..., :5, :], held.to(dtype))
        assert not torch.equal(returned[..., :5, :], old)


@pytest.mark.parametrize("size", SIZES)
def test_a_single_new_position_is_returned_as_later_steps_find_it(size: str) -> None:
    cache = Int8Cache.empty(config_of(size), 2, 12, device=CPU)
    cache.lengths = [2, 6]
    returned = cache.write(0, tuple(random_positions(cache, 1, 0)))
    cache.advance(1)
    again = cache.write(0, tuple(random_positions(cache, 1, 1)))
    for now, later in zip(returned, again, strict=True):
        for row, place in enumerate((2, 6)):
            assert torch.equal(now[row, ..., place, :], later[row, ..., place, :])
            assert now[row, ..., place, :].abs().max() > 0


@pytest.mark.parametrize("size", SIZES)
def test_positions_are_dropped_and_cut_as_in_a_plain_cache(size: str) -> None:
    config, window, prompt = config_of(size), 4, 3
    plain = Cache.allocate(config, 1, prompt + window, dtype=torch.float32, device=CPU)
    cache = Int8Cache.empty(config, 1, prompt + window, device=CPU)
    numbers = [random_positions(cache, 1, seed) for seed in range(12)]
    for number, new in enumerate(numbers):
        for each in (plain, cache):
            if number >= prompt:
                each.make_room(prompt, window)
            for layer in range(config.num_hidden_layers):
                each.write(layer, tuple(new))
            each.advance(1)
        assert (cache.lengths, cache.positions) == (plain.lengths, plain.positions)
    assert cache.num_forgotten > 0
    held = cache.layers[-1]
    for codes, scales, exact in zip(held[: len(held) // 2], held[len(held) // 2 :], plain.layers[-1], strict=True):
        error = (dequantize_rows(codes, scales, cache.widths).double() - exact.double()).abs()
        assert (error <= half_a_scale(exact, cache.widths)).all()
    cache.num_forgotten = 0
    cache.cut(2)
    assert cache.lengths == [2]
    cache.clear()
    assert cache.lengths == [0]
    assert not any(t.any() for layer in cache.layers for t in layer)


@pytest.mark.parametrize(
    ("form", "device", "says"),
    [
        ("int4", "cpu", "cache must be auto or int8, got int4"),
        ("int8", "cuda", "a cache in int8 is for the CPU only, and the model is to run on cuda"),
        ("int8", "mps", "a cache in int8 is for the CPU only, and the model is to run on mps"),
    ],
)
def test_other_forms_and_devices_are_refused(form: str, device: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}$"):
        check_cache(form, torch.device(device))
    assert check_cache("auto", torch.device(device)) == "auto"
