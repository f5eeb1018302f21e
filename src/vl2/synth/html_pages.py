"""Draw a page from HTML with WeasyPrint, without a browser, and return the boxes of its elements with an id.

WeasyPrint lays the page out to PDF and pypdfium2 draws it. The font is a part of the page, so that the same HTML gives
the same picture on every machine with the same font file and the same versions of both libraries.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageFile

from vl2.data.record import BoxPx
from vl2.errors import UserError
from vl2.optional_imports import import_extra
from vl2.synth.fonts import Face
from vl2.synth.source import Dropped

FONT_FILE = "font.ttf"
FAMILY = "page"  # the family of the face in the style sheet of a page
_CSS_PX_PER_POINT = 96 / 72


@dataclass(frozen=True, kw_only=True)
class DrawnPage:
    """A page, and the boxes of its elements in pixels by their ids, trimmed to what is drawn in them."""

    image: Image.Image
    boxes: Mapping[str, BoxPx]


def draw_html(page: str, face: Face, text: str, *, files: Mapping[str, bytes] | None = None) -> DrawnPage:
    """Draw a page on white, one image pixel per CSS pixel.

    `page` names the font family `page` and images by the plain names in `files`; nothing else is loaded. `text` has the
    characters that the font must draw. An element whose box is empty is left out. Raise Dropped if the content needs
    more than one page, and UserError if WeasyPrint or the Pango library is not installed.
    """
    weasyprint = import_weasyprint()
    with tempfile.TemporaryDirectory(prefix="vl2-page-") as folder:
        for name, content in {FONT_FILE: _subset(face, text), **(files or {})}.items():
            assert Path(name).name == name, f"{name} is not a plain file name"
            (Path(folder) / name).write_bytes(content)
        files_only = import_extra("weasyprint.urls", "documents", "drawing pages").URLFetcher(
            allowed_protocols=["file"]
        )
        document = weasyprint.HTML(string=page, base_url=f"{folder}/", url_fetcher=files_only).render()
        if len(document.pages) != 1:
            raise Dropped("the content does not fit on one page")
        anchors, pdf = dict(document.pages[0].anchors), document.write_pdf()
    pdfium = import_extra("pypdfium2", "documents", "drawing pages")
    image = pdfium.PdfDocument(pdf)[0].render(scale=_CSS_PX_PER_POINT).to_pil().convert("RGB")
    boxes = {name: box for name, place in anchors.items() if (box := _trim(image, place)) is not None}
    return DrawnPage(image=image, boxes=boxes)


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def style(width_px: int, height_px: int, margin_px: int, size_px: int) -> str:
    """Return the style sheet that every page needs: its size, its font and white paper."""
    return (
        f"@page {{ size: {width_px}px {height_px}px; margin: {margin_px}px; background: #fff }}\n"
        f"@font-face {{ font-family: {FAMILY}; src: url({FONT_FILE}) }}\n"
        f"html {{ font: {size_px}px/1.4 {FAMILY}; color: #111 }}\n"
        "body { margin: 0 } * { break-inside: avoid }\n"
    )


def import_weasyprint() -> Any:
    """Return the module weasyprint. Raise UserError if it or the Pango library is not installed.

    Its import tells Pillow to read truncated images, in the whole process. That is taken back here.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        return import_extra("weasyprint", "documents", "drawing pages")
    except OSError as error:  # it is a Python package around Pango, which pip does not install
        raise UserError(f"drawing pages needs the Pango library: install pango or libpango-1.0-0 ({error})") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _subset(face: Face, text: str) -> bytes:
    """Return a font file with the characters of a text from a face; collections have several faces in one file."""
    fonts, subset = (import_extra(f"fontTools.{name}", "documents", "drawing pages") for name in ("ttLib", "subset"))
    options = subset.Options(notdef_outline=True, layout_features=[])
    options.drop_tables += ["FFTM"]  # FontForge's time stamps, which the library does not know
    opened = fonts.TTFont(face.path, fontNumber=face.index, lazy=True, recalcBBoxes=False, recalcTimestamp=False)
    with opened as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(text=text + " ")
        subsetter.subset(font)
        buffer = io.BytesIO()
        font.save(buffer)
    return buffer.getvalue()


def _trim(image: Image.Image, place: tuple[float, float, float, float]) -> BoxPx | None:
    """Return the box around what is not white in a rectangle, or None if all is white."""
    left, top = max(0, int(place[0])), max(0, int(place[1]))
    right, bottom = min(image.width, int(place[2] + 1)), min(image.height, int(place[3] + 1))
    if left >= right or top >= bottom:
        return None
    part = image.crop((left, top, right, bottom))
    drawn = ImageChops.difference(part, Image.new("RGB", part.size, "white")).getbbox()
    if drawn is None:
        return None
    return (left + drawn[0], top + drawn[1], left + drawn[2], top + drawn[3])
