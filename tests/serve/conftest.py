from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the `serve` extra is not installed")

import vl2
from tests.ocr.golden import toy_folder
from vl2.infer.vlm import VLM

from .live_server import LiveServer, engine_backend, serving

EXAMPLES = Path(__file__).parents[2] / "examples"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model_name" in metafunc.fixturenames:
        is_for_every = metafunc.definition.get_closest_marker("every_model") is not None
        metafunc.parametrize("model_name", ["nano", "deepseek-ocr"] if is_for_every else ["nano"], scope="session")


@pytest.fixture(scope="session")
def model_name() -> str:
    """The name of the model, which `pytest_generate_tests` gives."""
    return "nano"


@pytest.fixture(scope="session")
def nano(model_name: str) -> VLM:
    """The built-in model, or for tests marked `every_model` a small random DeepSeek-OCR too."""
    return vl2.load("nano") if model_name == "nano" else vl2.load(toy_folder(model_name), tiling="tiny")


@pytest.fixture(scope="session")
def server(nano: VLM) -> Iterator[LiveServer]:
    """A server with a folder of pictures and without a key."""
    from vl2.serve.settings import ServerSettings

    settings = ServerSettings(name="nano", allowed_folders=(EXAMPLES,))
    with serving(engine_backend(nano), settings) as live:
        yield live
