from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the `serve` extra is not installed")

import vl2
from vl2.infer.vlm import VLM

from .live_server import LiveServer, engine_backend, serving

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def nano() -> VLM:
    return vl2.load("nano")


@pytest.fixture(scope="session")
def server(nano: VLM) -> Iterator[LiveServer]:
    """A server with a folder of pictures and without a key."""
    from vl2.serve.settings import ServerSettings

    settings = ServerSettings(name="nano", allowed_folders=(EXAMPLES,))
    with serving(engine_backend(nano), settings) as live:
        yield live
