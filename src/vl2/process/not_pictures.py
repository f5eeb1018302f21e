"""Recognize files that users mistake for pictures by their first bytes, and say what to do instead."""

from __future__ import annotations

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TO_PICTURE = "convert it to JPEG or PNG first"


def describe_non_picture(data: bytes) -> str | None:
    """Return what kind of file this is and what to do with it, or None if the kind is not known."""
    head = data[:1024]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head[4:8] == b"ftyp" and not {b"avif", b"avis"} & _brands(head):
        if _HEIF_BRANDS & _brands(head):
            return f"it is a HEIC (HEIF) photo, which is not read: {_TO_PICTURE}"
        return "it is a video: save a frame as JPEG or PNG first"
    if b"%PDF-" in head:  # a PDF file may begin with other bytes
        return "it is a PDF file: `vl2 read` and `vl2 batch` read its pages, or save a page as PNG first"
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in text):
        return "it is an SVG drawing, which is not read: save it as PNG first"
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not a picture: give the address of the picture itself"
    if text.startswith((b"%!ps", b"\xc5\xd0\xd3\xc6")):
        return f"it is PostScript (EPS), which is not read: {_TO_PICTURE}"
    if head.startswith(b"8BPS"):
        return f"it is a Photoshop file, which is not read: {_TO_PICTURE}"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return f"it is a JPEG XL picture, which is not read: {_TO_PICTURE}"
    if head.startswith(b"PK\x03\x04"):
        return "it is a ZIP archive or an Office document: give the pictures in it, or a document as PDF to `vl2 read`"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS in place of the picture: `git lfs pull` gets the picture itself"
    return None


def _brands(head: bytes) -> set[bytes]:
    """Return the brands of an ISO media file: its major brand and the compatible ones."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, length - 3, 4))}
