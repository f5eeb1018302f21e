"""Pages of PDF files: their number, their pictures and their text, by pypdfium2 (the extra `pdf`).

A file is given by its path or by its bytes. This module needs no PyTorch, so that `decode_worker.py` can draw pages of
files from untrusted clients.
"""

from __future__ import annotations

import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from vl2.errors import UserError
from vl2.optional_imports import install_extra

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

DEFAULT_DPI = 144  # an A4 page has 1,190 x 1,684 px, enough for the largest of the released grids
MIN_DPI, MAX_DPI = 18, 600
POINTS_PER_INCH = 72
MAX_LAYER_CHARS = 20_000  # more than an answer holds
MAX_PAGE_PX = 40_000_000  # a page that would be larger is rendered at a lower resolution
JPEG_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class PagesOptions:
    """Which pages of a PDF file are encoded as pictures, and within which limits."""

    pages: tuple[int, ...]  # from 1; numbers beyond the end of the file are left out
    dpi: int = DEFAULT_DPI
    max_side_px: int | None = None  # a page that would be larger is rendered at a lower resolution
    format: Literal["png", "jpeg"] = "png"
    max_page_px: int = MAX_PAGE_PX
    max_bytes: int = 24 << 20  # of all encoded pages; no page is begun after that
    cpu_s: float = 8.0  # CPU time for all pages; no page is begun after that

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EncodedPage:
    """A page as an encoded picture."""

    page: int  # from 1
    size: tuple[int, int]  # width and height in pixels
    data: bytes


def require_library() -> None:
    """Raise UserError, with the install command, if pypdfium2 is missing."""
    _library()


def count_pages(source: Path | bytes) -> int:
    """Return the number of pages of a PDF file. Raise UserError if it cannot be opened."""
    with open_pdf(source) as document:
        return len(document)


def draw_page(source: Path | bytes, number: int, dpi: int) -> Image.Image:
    """Render page `number`, counted from 1, as an RGB image. Raise UserError if that fails."""
    with open_pdf(source) as document:
        return _draw(document, number, dpi, MAX_PAGE_PX, None, _name(source))


def encode_pages(data: bytes, options: PagesOptions) -> tuple[int, list[EncodedPage]]:
    """Return the number of pages of a PDF file, and those that are asked for as encoded pictures, in their order.

    When the time or the bytes are used up, the pages that are left are not in the list; the first is always there.
    Raise UserError if the file cannot be opened or a page cannot be drawn.
    """
    began, num_bytes, encoded = time.process_time(), 0, list[EncodedPage]()
    with open_pdf(data) as document:
        num_pages = len(document)
        for number in options.pages:
            is_spent = time.process_time() - began > options.cpu_s or num_bytes > options.max_bytes
            if number > num_pages or (encoded and is_spent):
                continue
            image = _draw(document, number, options.dpi, options.max_page_px, options.max_side_px, "the PDF file")
            sink = io.BytesIO()
            image.save(sink, options.format, **({"quality": JPEG_QUALITY} if options.format == "jpeg" else {}))
            encoded.append(EncodedPage(page=number, size=image.size, data=sink.getvalue()))
            num_bytes += len(encoded[-1].data)
    return num_pages, encoded


def page_text(source: Path | bytes, number: int) -> str:
    """Return the text layer of page `number`, counted from 1, up to MAX_LAYER_CHARS; "" if it has none."""
    with open_pdf(source) as document:
        try:
            text: str = document[number - 1].get_textpage().get_text_bounded()
        except (_library().PdfiumError, IndexError):
            return ""
    return text[:MAX_LAYER_CHARS].replace("\r\n", "\n")


def open_pdf(source: Path | bytes) -> PdfDocument:
    """Open a PDF file. Raise UserError if that is not possible, or if pypdfium2 is not installed."""
    try:
        document: PdfDocument = _library().PdfDocument(source)
        return document
    except FileNotFoundError:
        raise UserError(f"no file {source!s}") from None
    except _library().PdfiumError as error:
        reason = "it has a password" if "assword" in str(error) else "it is not a PDF, or damaged"
        raise UserError(f"cannot open {_name(source)}: {reason}") from None


def _draw(
    document: PdfDocument, number: int, dpi: int, max_page_px: int, max_side_px: int | None, name: str
) -> Image.Image:
    try:
        page = document[number - 1]
        width, height = page.get_size()  # in points
        scale = min(dpi / POINTS_PER_INCH, (max_page_px / max(1.0, width * height)) ** 0.5)
        if max_side_px is not None:
            scale = min(scale, max_side_px / max(1.0, width, height))
        picture: Image.Image = page.render(scale=scale).to_pil().convert("RGB")
    except (_library().PdfiumError, IndexError) as error:
        raise UserError(f"cannot draw page {number} of {name}: {error}") from None
    return picture


def _name(source: Path | bytes) -> str:
    return "the PDF file" if isinstance(source, bytes) else str(source)


def _library() -> Any:
    try:
        import pypdfium2
    except ImportError:
        raise UserError(f"PDF files need pypdfium2: {install_extra('pdf')}") from None
    return pypdfium2


def options_from_json(told: dict[str, Any]) -> PagesOptions:
    """Return the options that `PagesOptions.to_dict` wrote, after their way through JSON."""
    return PagesOptions(**{**told, "pages": tuple(told["pages"])})
