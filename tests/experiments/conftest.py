"""The inputs of a drawing, and fixtures of the tests of training, which these tests share."""

import pytest

from tests.experiments.nano_inputs import write_inputs
from tests.train.conftest import one_thread, pair

__all__ = ("one_thread", "pair")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_inputs(tmp_path_factory.mktemp("nano") / "inputs"))
