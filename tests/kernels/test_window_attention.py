"""Attention within windows, with relative positions, is what SAM's modules compute in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.runtime.kernel_case import ROW_LEVELS, draw, needs_attention
from vl2.kernels import prefill_ops as kernels
from vl2.kernels.library import kernels_of_level
from vl2.model import sam

pytestmark = needs_attention

# views, side of the map, window, heads, channels of a head, size of the numbers
SHAPES = [
    (1, 14, 14, 2, 64, 1),
    (2, 20, 14, 3, 64, 1),  # windows that reach beyond the map
    (1, 20, 14, 1, 64, 6),  # large scores
    (1, 10, 10, 2, 12, 1),  # few channels, and rows of other lengths than a vector's
    (1, 40, 40, 1, 64, 1),  # a crop's whole map
    (1, 8, 4, 1, 128, 2),
    (1, 6, 2, 1, 2, 1),
]


@pytest.fixture(params=ROW_LEVELS, autouse=True)
def _level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load_kernels", lambda: kernels_of_level(request.param))


def case(views: int, side: int, window: int, heads: int, channels: int, size: float) -> tuple[Tensor, ...]:
    """Return rows of queries, keys and values, what is outside of the map, and two tables."""
    width = heads * channels
    return (
        draw(views, side, side, 3 * width) * size,
        draw(3 * width, seed=1),
        draw(2 * window - 1, channels, seed=2) * 0.3,
        draw(2 * window - 1, channels, seed=3) * 0.3,
    )


def attend_plainly(qkv: Tensor, outside: Tensor, heads: int, window: int, *tables: Tensor) -> Tensor:
    """Return the same by the plain functions of `vl2.model.sam`, with the matrix of all scores."""
    side = qkv.shape[1]
    padded = F.pad(qkv, (0, 0, 0, -side % window, 0, -side % window))
    padded[:, side:] = outside
    padded[:, :, side:] = outside
    q, k, v = sam.cut_windows(padded, window).flatten(1, 2).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    along_h, along_w = (sam.relative_positions(table, window) for table in tables)
    bias = sam.position_bias(q.unflatten(2, (window, window)), along_h, along_w)
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)
    return sam.join_windows((weights @ v).transpose(1, 2).flatten(2).unflatten(1, (window, window)), window, side, side)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_it_is_nearer_to_float64_than_pytorch_in_bfloat16(shape: tuple[int, ...]) -> None:
    _, _, window, heads, _, _ = shape
    qkv, outside, *tables = case(*shape)
    exact = attend_plainly(qkv.double(), outside.double(), heads, window, *(table.double() for table in tables))
    plain = attend_plainly(qkv, outside, heads, window, *tables)
    ours = kernels.attend_windows(qkv, outside, heads, window, *tables)
    assert ours is not None
    assert (ours - exact).abs().mean() <= (plain - exact).abs().mean()
    # Weights and results are rounded to bfloat16, each by up to 2^-9 of itself.
    assert (ours - exact).abs().max() <= 2**-7 * qkv.abs().max()


@torch.no_grad()
def test_scores_that_grow_from_key_to_key_are_summed_as_exactly() -> None:
    """Powers are relative to a score that must be chosen again and again."""
    window, channels = 16, 16
    qkv, outside, *tables = case(1, window, window, 1, channels, 1)
    qkv[..., :channels] = 4
    growing = torch.linspace(-8, 8, window * window).view(1, window, window, 1)
    qkv[..., channels : 2 * channels] = growing.to(torch.bfloat16)
    for rows in (qkv, qkv.flip(1, 2).contiguous()):
        exact = attend_plainly(rows.double(), outside.double(), 1, window, *(table.double() for table in tables))
        ours = kernels.attend_windows(rows, outside, 1, window, *tables)
        assert ours is not None
        assert (ours - exact).abs().max() <= 2**-6 * qkv.abs().max()


@pytest.mark.parametrize(("side", "window"), [(20, 14), (36, 36)])
@torch.no_grad()
def test_a_view_has_the_same_bits_beside_others_and_on_any_number_of_threads(side: int, window: int) -> None:
    qkv, outside, *tables = case(3, side, window, 2, 32, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = kernels.attend_windows(qkv, outside, 2, window, *tables)
        assert together is not None
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            alone = kernels.attend_windows(qkv[1:2], outside, 2, window, *tables)
            assert alone is not None
            assert torch.equal(alone, together[1:2])
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_shapes_beyond_the_kernel_are_left_to_pytorch() -> None:
    for window, channels in ((7, 64), (14, 130), (14, 3)):
        qkv, outside, *tables = case(1, 14, window, 1, channels, 1)
        assert kernels.attend_windows(qkv, outside, 1, window, *tables) is None
