"""Pages of PDF files as encoded pictures, within limits."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.pdf_files import color_pdf, text_pdf
from vl2.errors import UserError
from vl2.process.pdf import PagesOptions, count_pages, draw_page, encode_pages, options_from_json

COLORS = ("red", "lime", "blue")


def test_pages_are_encoded_in_the_order_in_which_they_are_asked_for() -> None:
    num_pages, pages = encode_pages(color_pdf(COLORS), PagesOptions(pages=(3, 1, 9), dpi=36))
    assert num_pages == 3
    assert [(page.page, page.size) for page in pages] == [(3, (100, 50)), (1, (100, 50))]
    pixels = [Image.open(io.BytesIO(page.data)).getpixel((50, 25)) for page in pages]
    assert isinstance(pixels[0], tuple)
    assert isinstance(pixels[1], tuple)
    assert pixels[0][2] > 200 > 50 > pixels[0][0]
    assert pixels[1][0] > 200 > 50 > pixels[1][2]


def test_a_page_is_the_picture_that_batch_jobs_draw() -> None:
    data = text_pdf("Total 12.50", x=100, y=700)
    _, (page,) = encode_pages(data, PagesOptions(pages=(1,), dpi=144))
    assert Image.open(io.BytesIO(page.data)).tobytes() == draw_page(data, 1, 144).tobytes()
    assert page.size == (1224, 1584)


@pytest.mark.parametrize(
    ("limit", "size"), [({"max_side_px": 50}, (50, 25)), ({"max_page_px": 800}, (40, 20))], ids=["side", "pixels"]
)
def test_a_page_that_would_be_too_large_gets_a_lower_resolution(limit: dict[str, int], size: tuple[int, int]) -> None:
    _, (page,) = encode_pages(color_pdf(COLORS), PagesOptions(pages=(1,), dpi=144, format="jpeg", **limit))
    assert page.size == size
    assert Image.open(io.BytesIO(page.data)).format == "JPEG"


@pytest.mark.parametrize("limit", [{"max_bytes": 1}, {"cpu_s": 0.0}], ids=["bytes", "time"])
def test_no_page_is_begun_when_the_limit_is_reached(limit: dict[str, float]) -> None:
    options = PagesOptions(pages=(1, 2, 3), dpi=36, **limit)  # type: ignore[arg-type]
    num_pages, pages = encode_pages(color_pdf(COLORS), options)
    assert num_pages == 3
    assert [page.page for page in pages] == [1]


def test_what_is_no_pdf_is_refused() -> None:
    for read in (lambda: count_pages(b"no pdf"), lambda: encode_pages(b"no pdf", PagesOptions(pages=(1,)))):
        with pytest.raises(UserError, match="cannot open the PDF file: it is not a PDF, or damaged"):
            read()


def test_options_survive_their_way_through_json() -> None:
    options = PagesOptions(pages=(2, 5), dpi=72, max_side_px=100, format="jpeg")
    assert options_from_json(options.to_dict()) == options
