"""PDF files for tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image


def text_pdf(text: str, *, x: int, y: int) -> bytes:
    """Return a PDF file of one page, 612 x 792 points, with a text in 12-point Helvetica."""
    stream = f"BT /F1 12 Tf {x} {y} Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    return _file(objects)


# Widths of Helvetica's characters from space to tilde, in thousandths of its size (Adobe's font metrics).
HELVETICA = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556,
    556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833,
    722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556,
    556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334,
    260, 334, 584,
)  # fmt: skip
FONTS = {"plain": "Helvetica", "bold": "Helvetica-Bold", "mono": "Courier"}
PAGE_PT = (612, 792)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A line of text; `y` is its baseline, from the top of the page, in points."""

    text: str
    x: float
    y: float
    size: float = 10
    font: str = "plain"
    is_hidden: bool = False

    def operators(self) -> str:
        shown = self.text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        mode = 3 if self.is_hidden else 0
        return f"BT {mode} Tr /{self.font} {self.size} Tf {self.x} {PAGE_PT[1] - self.y} Td ({shown}) Tj ET"


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """A line from (x0, y0) to (x1, y1), from the top of the page, in points."""

    x0: float
    y0: float
    x1: float
    y1: float

    def operators(self) -> str:
        return f"0.5 w {self.x0} {PAGE_PT[1] - self.y0} m {self.x1} {PAGE_PT[1] - self.y1} l S"


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A gray picture of one pixel, drawn over a box from the top of the page, in points."""

    x0: float
    y0: float
    x1: float
    y1: float

    def operators(self) -> str:
        return f"q {self.x1 - self.x0} 0 0 {self.y1 - self.y0} {self.x0} {PAGE_PT[1] - self.y1} cm /Dot Do Q"


Mark = Placed | Ruled | Filled


def placed_pdf(pages: Sequence[Sequence[Mark]], *, rotate: int = 0) -> bytes:
    """Return a PDF file whose pages have these marks. `rotate` is the pages' own rotation."""
    kids = " ".join(f"{6 + 2 * index} 0 R" for index in range(len(pages)))
    fonts = " ".join(
        f"/{name} << /Type /Font /Subtype /Type1 /BaseFont /{base} /Encoding /WinAnsiEncoding >>"
        for name, base in FONTS.items()
    )
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        f"<< /Font << {fonts} >> /XObject << /Dot 4 0 R >> >>",
        "<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
        "/Length 1 >>\nstream\n@\nendstream",
        "null",
    ]
    for index, marks in enumerate(pages):
        content = "\n".join(mark.operators() for mark in marks)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {PAGE_PT[0]} {PAGE_PT[1]}] /Rotate {rotate} "
            f"/Contents {7 + 2 * index} 0 R /Resources 3 0 R >>"
        )
        objects.append(f"<< /Length {len(content.encode('latin-1'))} >>\nstream\n{content}\nendstream")
    return _file([body.encode("latin-1") for body in objects])


def paragraph(text: str, *, x: float, y: float, width: float, size: float = 10, font: str = "plain") -> list[Placed]:
    """Return the lines of a text that is broken where the next word does not fit, 1.2 times its size apart."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [
        Placed(text=line, x=x, y=y + 1.2 * size * number, size=size, font=font) for number, line in enumerate(lines)
    ]


def text_width(text: str, size: float) -> float:
    """Return the width of a text in Helvetica, in points."""
    return sum(HELVETICA[ord(letter) - 32] for letter in text) * size / 1000


def _file(objects: Sequence[bytes]) -> bytes:
    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    return bytes(out)


def color_pdf(colors: Sequence[str]) -> bytes:
    """Return a PDF file with a page of 200 x 100 points for each color, filled with it."""
    pages = [Image.new("RGB", (200, 100), color) for color in colors]
    file = io.BytesIO()
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:], resolution=72)
    return file.getvalue()
