"""Reading text off images with the real engine, once for each image."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.curate.filters.examples import encoded
from vl2.curate.jobs import ocr
from vl2.curate.jobs.asker import Ledger
from vl2.curate.jobs.ocr import OcrCache, hints, read_lines
from vl2.errors import UserError


def receipt() -> bytes:
    image = Image.new("RGB", (500, 200), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=40)
    draw.text((20, 110), "Thank you", fill="black", font=font)
    draw.text((20, 20), "TOTAL 42.50 EUR", fill="black", font=font)
    return encoded(image)


def test_lines_are_read_from_top_to_bottom_with_boxes(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    with Ledger(tmp_path / "ocr.jsonl") as ledger:
        cache = OcrCache(ledger)
        lines = cache.lines(receipt())
        assert hints(lines) == "TOTAL 42.50 EUR\nThank you"
        x0, y0, x1, y1 = lines[0].box_px
        assert 0 <= x0 < 30 < 300 < x1 <= 500
        assert 0 <= y0 < 40 < y1 < 100
        blank = encoded(Image.new("RGB", (64, 64), "white"))
        cache.read_all([receipt(), blank, blank])
        assert cache.lines(blank) == ()
        assert len(ledger) == 2
    with Ledger(tmp_path / "ocr.jsonl") as ledger:
        assert OcrCache(ledger).lines(receipt()) == lines


def test_without_the_engine_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    ocr._engine.cache_clear()
    with pytest.raises(UserError, match=r'needs rapidocr and onnxruntime: pip install -e ".+\[data\]"'):
        read_lines(receipt())
