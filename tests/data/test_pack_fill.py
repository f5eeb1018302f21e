"""How full packs are, and the advice where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from vl2.data.pack import Packing
from vl2.data.pack_fill import PackFill

PACKING = Packing(seq_len=1000, max_tiles=16)


def test_full_packs_need_no_advice() -> None:
    fill = PackFill.of([(1000, 4), (900, 16), (800, 2)], PACKING)
    assert fill.fill == pytest.approx(0.9)
    assert fill.warning is None


def test_packs_with_all_their_tiles_are_told_to_take_more() -> None:
    warning = PackFill.of([(300, 16), (300, 15)], PACKING).warning
    assert warning is not None
    assert "only 30% full" in warning
    assert "stage.max_tiles_per_pack to about 54" in warning


def test_packs_of_records_that_do_not_fit_together_are_told_to_choose_from_more() -> None:
    warning = PackFill.of([(600, 4), (600, 4)], PACKING).warning
    assert warning is not None
    assert "data.window_packs" in warning
    assert "stage.seq_len to about 600" in warning


def test_single_samples_are_not_packed() -> None:
    assert PackFill.of([(100, 1)], Packing(seq_len=1000, is_packed=False)).warning is None


def test_an_estimate_packs_draws_of_the_records_that_fit() -> None:
    # Tiles of 9 tokens: 16 of them are 144 of 1,000 places. Of 60 tokens: 16 fill 960.
    small, large = (PackFill.estimate(np.array([n, 5000]), np.array([1, 1]), PACKING) for n in (9, 60))
    assert small is not None
    assert large is not None
    assert small.fill == pytest.approx(0.144)
    assert small.is_limited_by_tiles
    assert large.fill == pytest.approx(0.96)
    assert PackFill.estimate(np.array([5000]), np.array([1]), PACKING) is None
