"""Packing: both budgets hold, nothing is lost or cut, ranks are balanced, and samples never see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vl2.data.pack import Packing, balance, even_order, make_packs
from vl2.errors import UserError
from vl2.model.attention import AttentionMask

SAMPLES = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 9)), max_size=60)
PACKS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4096)), max_size=40)


@given(SAMPLES, st.booleans())
@settings(deadline=None)
def test_every_sample_is_in_one_pack_and_both_budgets_hold(samples: list[tuple[int, int]], is_packed: bool) -> None:
    tokens = np.array([t for t, _ in samples], dtype=np.int64)
    tiles = np.array([i for _, i in samples], dtype=np.int64)
    packing = Packing(seq_len=64, max_tiles=6, is_packed=is_packed)
    packs = make_packs(tokens, tiles, packing)
    assert sorted(i for pack in packs for i in pack) == list(range(len(samples)))
    assert packs == make_packs(tokens, tiles, packing)
    for pack in packs:
        assert pack == sorted(pack)
        assert sum(tokens[pack]) <= 64
        over = [i for i in pack if tiles[i] > 6]  # more than a pack should have, on its own
        assert sum(tiles[pack]) <= (tiles[over[0]] if over else 6)
        assert is_packed or len(pack) == 1


def test_the_tightest_pack_is_taken() -> None:
    packs = make_packs(np.array([60, 50, 40, 38, 12, 4]), np.zeros(6, dtype=np.int64), Packing(seq_len=64))
    assert sorted(map(tuple, packs)) == [(0, 5), (1, 4), (2,), (3,)]


def test_packs_of_small_samples_hold_all_lengths_alike() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(80, 120, 3000)
    packs = make_packs(tokens, np.ones(3000, dtype=np.int64), Packing(seq_len=2048, max_tiles=64))
    full = [pack for pack in packs if sum(tokens[pack]) > 1900]
    assert len(full) >= len(packs) - 2
    means = np.array([tokens[pack].mean() for pack in full])
    # As of samples drawn at random, whose means differ by 11.5 / sqrt(20) = 2.6; sorted ones' differ by 11.5.
    assert means.std() < 4


@given(PACKS, st.integers(1, 9))
@settings(deadline=None)
def test_ranks_get_every_pack_once_and_counts_differ_by_at_most_one(
    packs: list[tuple[int, int]], num_ranks: int
) -> None:
    ranks = balance([tiles for tiles, _ in packs], [tokens for _, tokens in packs], num_ranks)
    assert sorted(pack for rank in ranks for pack in rank) == list(range(len(packs)))
    counts = [len(rank) for rank in ranks]
    assert len(ranks) == num_ranks
    assert max(counts) - min(counts) <= 1
    for rank in ranks:
        assert [packs[i][0] for i in rank] == sorted((packs[i][0] for i in rank), reverse=True)


def test_balancing_by_tiles_beats_dealing_in_order() -> None:
    rng = np.random.default_rng(0)
    dealt, balanced = [], []
    for _ in range(20):
        tiles = rng.integers(4, 20, 32)
        ranks = balance(tiles.tolist(), [4096] * 32, 8)
        balanced.append(max(tiles[rank].sum() for rank in ranks) / tiles.sum() * 8)
        dealt.append(max(tiles[rank::8].sum() for rank in range(8)) / tiles.sum() * 8)
    assert np.mean(balanced) < 1.05 < 1.15 < np.mean(dealt)


def test_any_run_of_packs_holds_about_the_mean_of_everything() -> None:
    rng = np.random.default_rng(0)
    contents = rng.multinomial(4096, [0.5, 0.3, 0.15, 0.05], size=300) * rng.integers(0, 2, (300, 4))
    shuffled = rng.permutation(300)
    order = even_order(contents, shuffled)
    assert sorted(order) == list(range(300))

    def drift(order: NDArray[np.int64]) -> NDArray[np.float64]:
        off: NDArray[np.float64] = np.abs(np.cumsum(contents[order] - contents.mean(axis=0), axis=0)).max(axis=0)
        return off

    assert (drift(order) * 3 < drift(shuffled)).all()
    assert even_order(contents[:0], shuffled[:0]).tolist() == []


def test_no_attention_crosses_samples() -> None:
    borders = torch.tensor([0, 2, 5, 6], dtype=torch.int32)
    mask = AttentionMask.of_documents(borders, 3).dense(6, 6, borders.device)
    assert mask is not None
    document = [0, 0, 1, 1, 1, 2]
    for i in range(6):
        for j in range(6):
            assert bool(mask[i, j]) == (document[i] == document[j] and j <= i)


def test_budgets_must_be_positive() -> None:
    with pytest.raises(UserError, match="got 0 and 16"):
        Packing(seq_len=0)
    with pytest.raises(UserError, match="at least one rank"):
        balance([1], [1], 0)
