"""One deterministic hypothesis profile, and the processors of the golden checkpoints."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from vl2.process.decode import RELEASED_OPTIONS
from vl2.process.processor import Processor

from .golden import REFERENCE, TOYS

settings.register_profile(
    "process",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("process")


@pytest.fixture(scope="session")
def processors() -> dict[str, Processor]:
    """By golden tag. Pictures are read exactly as the released code reads them."""
    return {
        tag: Processor.from_folder(REFERENCE / "checkpoints" / folder, image_options=RELEASED_OPTIONS)
        for tag, folder in TOYS.items()
    }


@pytest.fixture(scope="session")
def toy(processors: dict[str, Processor]) -> Processor:
    """The one with the smallest tiles (56 px, 2 x 2 tokens)."""
    return processors["toy56"]
