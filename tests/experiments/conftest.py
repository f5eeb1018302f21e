"""Fixtures of the tests of training, which these tests share."""

from tests.train.conftest import one_thread, pair

__all__ = ("one_thread", "pair")
