"""Documents from files: an image is one page, a PDF file has several, whose text layer is searched."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vl2.batch_job.file_items import input_files
from vl2.errors import UserError
from vl2.extract.extract import Document, Page
from vl2.process.grounding import BoxPx
from vl2.process.image import open_image
from vl2.process.pdf import DEFAULT_DPI, count_pages, draw_page, open_pdf

MAX_PAGES = 8  # of a document that is read at once: more do not fit into the context


def file_documents(
    inputs: Sequence[str], *, dpi: int = DEFAULT_DPI, first: int = 1, last: int = sys.maxsize
) -> list[Document]:
    """Return a document for each image or PDF file; of PDF files, the pages from `first` to `last`.

    Raise UserError if a path does not exist or nothing is found.
    """
    if not 18 <= dpi <= 600:
        raise UserError(f"dpi must be in 18..600, got {dpi}")
    documents = [
        Document(name=name, pages=partial(_pages, path, dpi, first, last)) for name, path in input_files(inputs)
    ]
    if not documents:
        raise UserError(f"nothing to read in {', '.join(inputs)}")
    return documents


def _pages(path: Path, dpi: int, first: int, last: int) -> list[Page]:
    if path.suffix.lower() != ".pdf":
        return [Page(image=open_image(path.as_posix()))]
    numbers = range(first, min(last, count_pages(path)) + 1)
    if not numbers:
        raise UserError(f"{path} has no page {first}")
    if len(numbers) > MAX_PAGES:
        raise UserError(
            f"{path} has {len(numbers)} pages, and at most {MAX_PAGES} are read at once: choose with --pages"
        )
    return [_pdf_page(path, number, dpi) for number in numbers]


def _pdf_page(path: Path, number: int, dpi: int) -> Page:
    image = draw_page(path, number, dpi)
    with open_pdf(path) as document:
        has_text = document[number - 1].get_textpage().count_chars() > 0
    return Page(image=image, find=partial(find_text, path, number, image) if has_text else None)


def find_text(path: Path, number: int, image: Image.Image, text: str) -> BoxPx | None:
    """Return the box, in pixels of the drawn page, of the first occurrence of a text in the page's text layer."""
    with open_pdf(path) as document:
        page = document[number - 1]
        layer = page.get_textpage()
        found = layer.search(text, match_case=False, match_whole_word=text.isascii() and text.isalnum()).get_next()
        if found is None:
            return None
        start, count = found
        rectangles = [layer.get_rect(i) for i in range(layer.count_rects(start, count))]
        return _in_pixels(rectangles, page, image)


def _in_pixels(rectangles: Sequence[tuple[float, float, float, float]], page: Any, image: Image.Image) -> BoxPx | None:
    """Return the box around rectangles (left, bottom, right, top) in points, whose origin is the lower left corner."""
    if not rectangles:
        return None
    left, bottom, right, top = page.get_cropbox()
    x, y = image.width / (right - left), image.height / (top - bottom)
    if page.get_rotation() in (90, 270):
        return None  # the rectangles are those of the page before it is turned
    x0, x1 = min(r[0] for r in rectangles) - left, max(r[2] for r in rectangles) - left
    y0, y1 = top - max(r[3] for r in rectangles), top - min(r[1] for r in rectangles)
    return x0 * x, y0 * y, x1 * x, y1 * y
