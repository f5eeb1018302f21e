"""Fixtures of the training tests, for training from an assembled model."""

from tests.train.conftest import _undrawn, one_thread

__all__ = ("_undrawn", "one_thread")
