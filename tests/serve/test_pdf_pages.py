"""The endpoint that draws pages of PDF files: what it returns, refuses and survives."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.pdf_files import color_pdf
from vl2.infer.vlm import VLM
from vl2.process.pdf import draw_page
from vl2.serve.settings import RequestLimits, ServerSettings

from .live_server import LiveServer, engine_backend, serving

COLORS = ("red", "lime", "blue")
PATH = "/v1/pdf/pages"


def data_url(data: bytes) -> str:
    return "data:application/pdf;base64," + base64.b64encode(data).decode()


def decode(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


@pytest.fixture(scope="module")
def live(nano: VLM) -> Iterator[LiveServer]:
    limits = RequestLimits(decode_cpu_s=4.0, max_image_bytes=1 << 20)
    with serving(engine_backend(nano), ServerSettings(name="nano", limits=limits)) as server:
        yield server


def test_pages_are_returned_as_pictures(live: LiveServer) -> None:
    file = color_pdf(COLORS)
    answer = live.post(PATH, {"file": data_url(file), "pages": [2, 3, 3, 8]})
    assert answer.status_code == 200
    told = answer.json()
    assert told["num_pages"] == 3
    assert [(page["page"], page["width"], page["height"]) for page in told["data"]] == [(2, 400, 200), (3, 400, 200)]
    assert decode(told["data"][0]["url"]).tobytes() == draw_page(file, 2, 144).tobytes()
    small = live.post(PATH, {"file": data_url(file), "pages": [1], "max_side_px": 40, "format": "jpeg"}).json()["data"]
    assert (decode(small[0]["url"]).size, decode(small[0]["url"]).format) == ((40, 20), "JPEG")


def bomb() -> bytes:
    """Return a PDF file of few bytes whose page draws a form that draws a form ... 10**12 times in all."""
    depth = 12
    forms = [
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 100 100] /Resources << /XObject << /F %d 0 R >> >> "
        b"/Length 80 >>\nstream\n%s\nendstream" % (5 + n, b"/F Do " * 10 + b" " * 20)
        for n in range(depth)
    ]
    leaf = b"<< /Type /XObject /Subtype /Form /BBox [0 0 100 100] /Length 17 >>\nstream\n0 0 99 99 re f    \nendstream"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Contents 17 0 R "
        b"/Resources << /XObject << /F 4 0 R >> >> >>",
        *forms,
        leaf,
        b"<< /Length 5 >>\nstream\n/F Do\nendstream",
    ]
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % (n, content) for n, content in enumerate(objects, start=1))
    return b"%PDF-1.4\n" + body + b"trailer << /Root 1 0 R >>\n%%EOF"


def test_a_file_that_takes_too_long_ends_its_own_process_only(live: LiveServer) -> None:
    answer = live.post(PATH, {"file": data_url(bomb()), "pages": [1]})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith("cannot draw pages of the PDF file: decoding it takes more than")
    assert live.post(PATH, {"file": data_url(color_pdf(COLORS)), "pages": [1]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"file": data_url(b"no pdf"), "pages": [1]}, "cannot open the PDF file: it is not a PDF, or damaged"),
        ({"file": data_url(bytes(2 << 20)), "pages": [1]}, "bytes"),
        ({"file": "https://example.org/a.pdf", "pages": [1]}, "must be a data URL"),
        ({"file": "/etc/passwd", "pages": [1]}, "must be a data URL"),
        ({"file": "data:application/pdf;base64,%%%", "pages": [1]}, "base64"),
        ({"file": data_url(b"x"), "pages": []}, "pages"),
        ({"file": data_url(b"x"), "pages": [0]}, "pages"),
        ({"file": data_url(b"x"), "pages": list(range(1, 100))}, "pages"),
        ({"file": data_url(b"x"), "pages": [1], "dpi": 5000}, "dpi"),
        ({"file": data_url(b"x"), "pages": [1], "format": "tiff"}, "format"),
        ({"file": data_url(b"x")}, "pages"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(live: LiveServer, body: dict[str, Any], told: str) -> None:
    answer = live.post(PATH, body)
    assert answer.status_code in (400, 413, 422)
    message = answer.json()["error"]["message"]
    assert told in message
    assert "\n" not in message
