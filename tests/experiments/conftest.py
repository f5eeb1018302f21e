"""Fixtures of the tests of the data and of the training, which these tests share."""

from tests.data.conftest import no_system_fonts
from tests.train.conftest import one_thread, pair

__all__ = ("no_system_fonts", "one_thread", "pair")
