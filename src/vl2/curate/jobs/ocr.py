"""Read the text off a picture with a real engine, rapidocr, whose wheel holds its models.

Boxes are in pixels of the upright picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from PIL import Image

from vl2.curate.jobs.asker import Ledger
from vl2.data.ray_map import Where, map_in_order
from vl2.data.record import BoxPx
from vl2.data.stored_image import content_hash
from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.process.image import open_image


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of text, the upright box around it, and how sure the engine is, 0..1."""

    text: str
    box_px: BoxPx
    score: float


def read_lines(data: bytes) -> list[Line]:
    """Return the lines of an image file, from top to bottom. UserError if it does not open."""
    return lines_of(open_image(data))


def lines_of(image: Image.Image) -> list[Line]:
    """Return the lines of an RGB picture, from top to bottom; none if there is no text."""
    import numpy as np

    found = _engine()(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # it takes blue first
    if found.txts is None:
        return []
    lines = [
        Line(text=text, box_px=_upright(corners, image.size), score=round(float(score), 4))
        for text, corners, score in zip(found.txts, found.boxes.tolist(), found.scores, strict=True)
        if text.strip()
    ]
    return sorted(lines, key=lambda line: (line.box_px[1], line.box_px[0]))


def hints(lines: Iterable[Line], min_score: float = 0.6, max_characters: int = 4000) -> str:
    """Return the lines that the engine is sure of, one below the other, as prompts carry them."""
    return "\n".join(line.text for line in lines if line.score >= min_score)[:max_characters]


class OcrCache:
    """The lines of every image read so far, by its content: a job that is run again reads nothing twice."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def read_all(self, images: Iterable[bytes], on: Where = "local") -> None:
        """Read the images that were not read before, here or on a cluster. All of them must open."""
        missing = {self._key(data): data for data in images}
        missing = {key: data for key, data in missing.items() if key not in self._ledger}
        if not missing:  # or a cluster would be started for nothing
            return
        for key, lines in zip(missing, map_in_order(read_lines, missing.values(), on), strict=True):
            self._ledger.put(key, [[line.text, list(line.box_px), line.score] for line in lines])

    def lines(self, data: bytes) -> tuple[Line, ...]:
        """Return the lines of an image, reading it if that was not done."""
        self.read_all([data])
        found = self._ledger.get(self._key(data))
        return tuple(Line(text=text, box_px=tuple(box), score=score) for text, box, score in found)

    @staticmethod
    def _key(data: bytes) -> str:
        return f"{_engine_name()}:{content_hash(data)}"


@cache
def _engine_name() -> str:
    """Return the engine and its version: another version reads anew."""
    _import_engine()
    return f"rapidocr-{version('rapidocr')}"


@cache  # one for each process: loading the models takes longer than reading a page
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
