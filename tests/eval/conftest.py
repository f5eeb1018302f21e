"""The built-in model, loaded once, and small benchmarks to ask it."""

from __future__ import annotations

import pytest

from vl2.infer.vlm import VLM, load


@pytest.fixture(scope="session")
def nano() -> VLM:
    return load("nano", device="cpu", dtype="float32")
