"""Two and four processes, kept for all tests of this folder: starting four takes longer than their tests do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.train.two_ranks import TwoRanks


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test of this folder."""


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
