from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.train.two_ranks import TwoRanks


@pytest.fixture(autouse=True, scope="package")
def _undrawn() -> Iterator[None]:
    """Leave out the pictures at the end of a run, which take longer than most runs here: nobody looks at them.

    That a run draws them is shown by tests/cli/test_train.py, what they hold by test_metrics.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl2.train.run._save_plots", lambda folder, say: None)
        yield


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
