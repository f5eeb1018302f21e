"""Pages of PDF files as pictures (library: pypdfium2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vl2.errors import UserError
from vl2.install_hint import install_extra

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

POINTS_PER_INCH = 72
MAX_PAGE_PX = 40_000_000  # of one page: what is larger is drawn coarser


def require_library() -> None:
    """Raise UserError, with what to install, if no PDF file can be read here."""
    _library()


def count_pages(path: Path) -> int:
    """Return how many pages a file has. UserError if it cannot be opened."""
    with _open(path) as document:
        return len(document)


def draw_page(path: Path, number: int, dpi: int) -> Image.Image:
    """Return page `number`, from 1, as an RGB image."""
    with _open(path) as document:
        try:
            page = document[number - 1]
            width, height = page.get_size()  # in points
            scale = min(dpi / POINTS_PER_INCH, (MAX_PAGE_PX / max(1.0, width * height)) ** 0.5)
            picture: Image.Image = page.render(scale=scale).to_pil().convert("RGB")
        except (_library().PdfiumError, IndexError) as error:
            raise UserError(f"cannot draw page {number} of {path}: {error}") from None
        return picture


def _open(path: Path) -> PdfDocument:
    try:
        document: PdfDocument = _library().PdfDocument(path)
        return document
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except _library().PdfiumError as error:
        reason = "it has a password" if "assword" in str(error) else "it is not a PDF, or damaged"
        raise UserError(f"cannot open {path}: {reason}") from None


def _library() -> Any:
    try:
        import pypdfium2
    except ImportError:
        raise UserError(f"PDF files need pypdfium2: {install_extra('pdf')}") from None
    return pypdfium2
