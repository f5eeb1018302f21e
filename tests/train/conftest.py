from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.train.two_ranks import TwoRanks


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as ranks do: sums over rows depend on how they are shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> Iterator[TwoRanks]:
    """Two gloo processes, for the tests of one module."""
    two = TwoRanks()
    yield two
    two.close()
