"""OCR of images with rapidocr, whose wheel contains its models, and a cache of the results.

Boxes are in pixels of the upright image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from PIL import Image

from vl2.curate.jobs.asker import Ledger
from vl2.data.ray_map import MapBackend, map_in_order
from vl2.data.record import BoxPx
from vl2.data.stored_image import content_hash
from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.process.image import open_image


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of text, its axis-aligned bounding box, and the engine's confidence from 0 to 1."""

    text: str
    box_px: BoxPx
    score: float


def read_lines(data: bytes) -> list[Line]:
    """Return the text lines of an image file, from top to bottom. Raise UserError if it cannot be decoded."""
    return lines_of(open_image(data))


def lines_of(image: Image.Image) -> list[Line]:
    """Return the text lines of an RGB image, from top to bottom."""
    import numpy as np

    found = _engine()(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # the engine expects BGR
    if found.txts is None:
        return []
    lines = [
        Line(text=text, box_px=_upright(corners, image.size), score=round(float(score), 4))
        for text, corners, score in zip(found.txts, found.boxes.tolist(), found.scores, strict=True)
        if text.strip()
    ]
    return sorted(lines, key=lambda line: (line.box_px[1], line.box_px[0]))


def hints(lines: Iterable[Line], min_score: float = 0.6, max_characters: int = 4000) -> str:
    """Return the lines with a confidence of at least `min_score` as text for a prompt."""
    return "\n".join(line.text for line in lines if line.score >= min_score)[:max_characters]


class OcrCache:
    """A persistent cache of OCR results by content hash, so that a job that is run again reads no image twice."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def read_all(self, images: Iterable[bytes], on: MapBackend = "local") -> None:
        """Run OCR on the images that are not cached yet, on this machine or a cluster. All must be decodable."""
        missing = {self._key(data): data for data in images}
        missing = {key: data for key, data in missing.items() if key not in self._ledger}
        if not missing:  # do not start a cluster needlessly
            return
        for key, lines in zip(missing, map_in_order(read_lines, missing.values(), on), strict=True):
            self._ledger.put(key, [[line.text, list(line.box_px), line.score] for line in lines])

    def lines(self, data: bytes) -> tuple[Line, ...]:
        """Return the lines of an image, running OCR if they are not cached."""
        self.read_all([data])
        found = self._ledger.get(self._key(data))
        return tuple(Line(text=text, box_px=tuple(box), score=score) for text, box, score in found)

    @staticmethod
    def _key(data: bytes) -> str:
        return f"{_engine_name()}:{content_hash(data)}"


@cache
def _engine_name() -> str:
    """Return the engine's name and version, which are part of the cache key."""
    _import_engine()
    return f"rapidocr-{version('rapidocr')}"


@cache  # one engine per process, because loading the models takes longer than reading a page
def _engine() -> Any:
    return _import_engine()(params={"Global.log_level": "error"})


def _import_engine() -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]  # noqa: F401
        from rapidocr import RapidOCR  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        raise UserError(f"reading text off images needs rapidocr and onnxruntime: {install_extra('data')}") from None
    return RapidOCR


def _upright(corners: list[list[float]], size: tuple[int, int]) -> BoxPx:
    columns, rows = [min(max(x, 0.0), size[0]) for x, _ in corners], [min(max(y, 0.0), size[1]) for _, y in corners]
    return min(columns), min(rows), max(columns), max(rows)
