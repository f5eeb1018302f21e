"""Files that are taken for pictures: each is told what it is, and what to do with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl2.errors import UserError
from vl2.process.image import open_image

KINDS = {
    "report.pdf": (b"%PDF-1.7\n%...", "it is a PDF file: `vl2 read` and `vl2 batch` read its pages"),
    "late.pdf": (b"\n\n\xef\xbb\xbf%PDF-1.4\n", "it is a PDF file"),
    "photo.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "HEIC (HEIF) photo, which is not read: convert it to JPEG or PNG",
    ),
    "photo.heif": (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC (HEIF) photo"),
    "clip.mp4": (b"\0\0\0\x18ftypisom\0\0\0\0", "it is a video"),
    "logo.svg": (
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "it is an SVG drawing, which is not read: save it as PNG",
    ),
    "logo2.svg": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "it is an SVG drawing"),
    "page.html": (b"<!DOCTYPE html><html>", "it is a web page"),
    "plot.eps": (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
    "art.psd": (b"8BPS\0\x01", "Photoshop"),
    "new.jxl": (b"\xff\x0a\xfa\x7f", "JPEG XL"),
    "letter.docx": (b"PK\x03\x04\x14\0", "an Office document"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "notes.txt": (b"hello", "it is not a picture in a known format (allowed: PNG, "),
}


@pytest.mark.parametrize("name", KINDS)
def test_python_says_what_a_file_is(name: str) -> None:
    content, says = KINDS[name]
    with pytest.raises(UserError) as caught:
        open_image(content)
    assert says in str(caught.value)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    "command",
    [("ask", "hi", "-i"), ("describe", "-i"), ("locate", "a", "-i"), ("chat", "-i"), ("inspect",)],
    ids=lambda c: c[0],
)
def test_every_command_says_it_before_the_model_loads(vl2, command: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("report.pdf", "photo.heic", "logo.svg"):
        content, says = KINDS[name]
        (tmp_path / name).write_bytes(content)
        ran = vl2(*command, tmp_path / name)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert says in ran.err
