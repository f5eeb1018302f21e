"""Two and four processes, kept for all tests of this folder: starting four takes longer than their tests do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.train.two_ranks import TwoRanks


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute here with as many threads as the ranks do: sums over rows depend on how they are shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def pair() -> Iterator[TwoRanks]:
    ranks = TwoRanks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="package")
def four() -> Iterator[TwoRanks]:
    ranks = TwoRanks(size=4)
    yield ranks
    ranks.close()
