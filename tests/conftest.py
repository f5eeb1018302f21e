"""What tests of drawn records share, wherever they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.reference import CHECKPOINTS

if not torch.cuda.is_available():
    # Triton's interpreter runs the kernels for cards. Triton reads this when it is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw with the fonts of Pillow and matplotlib, whatever else this machine has.

    What is drawn depends on the fonts, and whether some of it is in Chinese.
    """
    import matplotlib

    from vl2.synth import fonts

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    monkeypatch.setattr(fonts, "font_folders", lambda: [folder])
    for kept in (fonts.find_faces, fonts.languages):
        kept.cache_clear()
    yield
    for kept in (fonts.find_faces, fonts.languages):
        kept.cache_clear()


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's cache, in a folder that is not there yet."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def checkpoint() -> Path:
    """A small checkpoint of random weights."""
    return CHECKPOINTS / "tiny"
