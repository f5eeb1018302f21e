"""What tests of drawn records share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vl2.data.construct import fonts


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw with Pillow's own font, whatever this machine has: what is drawn depends on it, and whether in Chinese."""
    monkeypatch.setattr(fonts, "font_folders", list)
    fonts.find_faces.cache_clear()
    yield
    fonts.find_faces.cache_clear()
