"""Open a picture from any source: a path, a URL, a data URL, bytes, an open file, a PIL image.

The source is read to bytes within the limits of `ImageOptions`, which are then decoded to an RGB image (`decode.py`).
"""

from __future__ import annotations

import binascii
import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from vl2.process.decode import RELEASED_OPTIONS, ImageOptions, check_size, decode_image, refuse, to_rgb
from vl2.process.fetch import fetch

__all__ = [
    "RELEASED_OPTIONS",
    "ImageOptions",
    "ImageSource",
    "describe_source",
    "is_image_source",
    "open_image",
    "read_source",
]

_ALLOWED = "a path, an http(s) URL, a data URL, bytes, an open binary file or a PIL image"
_MAX_NAME = 80  # characters of a source that an error message repeats

MAX_HEAD_CHARS = 1000  # limit of a data URL's head, before its comma
DATA_URL_PIECE = 1 << 18  # characters that are decoded at a time
_BASE64 = bytes.maketrans(b"-_", b"+/")
_BASE64_DIGITS = (string.ascii_letters + string.digits + "+/").encode()
_HEX_DIGITS = np.full(256, 255, dtype=np.uint8)
for _digit in string.hexdigits:
    _HEX_DIGITS[ord(_digit)] = int(_digit, 16)


@runtime_checkable
class BinaryFile(Protocol):
    """The part of an open file's interface that this module needs."""

    def read(self, size: int, /) -> bytes: ...


ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | BinaryFile


def is_image_source(value: object) -> bool:
    """Tell whether `open_image` accepts a value of this type; the value may still be no picture."""
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | BinaryFile)


def open_image(source: ImageSource, options: ImageOptions | None = None) -> Image.Image:
    """Return the picture as a new RGB image, upright by default.

    Raise UserError, which names the source, the fault and what is allowed, if the picture cannot be opened.
    """
    options = options or ImageOptions()
    name = describe_source(source)
    if isinstance(source, Image.Image):
        check_size(source.size, name, options)
        # Copy it, because loading, turning and converting must not change the caller's image.
        return to_rgb(_copy(source, name), name, options)
    return decode_image(_read(source, name, options), name, options)


def read_source(source: ImageSource, options: ImageOptions) -> bytes:
    """Return the undecoded bytes of a picture. Raise UserError for a PIL image, which has none."""
    return _read(source, describe_source(source), options)


def describe_source(source: object) -> str:
    """Return a short printable name of a source, for messages."""
    if isinstance(source, Image.Image):
        return f"<PIL image, {source.mode}, {source.size[0]} x {source.size[1]}>"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if isinstance(source, str) and source[:5].lower() == "data:":
        head = source[5 : 5 + _MAX_NAME].partition(",")[0]
        return f"<data URL of {len(source)} characters, {_shorten(head, 40)}>"
    if isinstance(source, str | os.PathLike):
        return _shorten(str(source), _MAX_NAME)
    name = getattr(source, "name", None)
    return _shorten(name, _MAX_NAME) if isinstance(name, str) else f"<{type(source).__name__}>"


def _shorten(text: str, limit: int) -> str:
    """Cut out the middle of a long text, because the end of a path says most."""
    if len(text) > limit:
        half = (limit - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(c if c.isprintable() else "?" for c in text)


def _copy(image: Image.Image, name: str) -> Image.Image:
    try:
        return image.copy()
    except Exception as error:  # a lazy image may be damaged, or its file closed
        refuse(name, str(error))


def _read(source: object, name: str, options: ImageOptions) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str):
        scheme = source[:8].lower()
        if scheme.startswith("data:"):
            return read_data_url(source, name, options)
        if scheme.startswith(("http://", "https://")):
            return _read_url(source, name, options)
    if isinstance(source, str | os.PathLike):
        return _read_path(source, name, options)
    if isinstance(source, BinaryFile):
        return _read_file(source, name, options)
    refuse(name, f"an image must be {_ALLOWED}, not {type(source).__name__}")


def _read_url(url: str, name: str, options: ImageOptions) -> bytes:
    if not options.allow_urls:
        refuse(name, "URLs are not allowed here")
    return fetch(
        url,
        max_bytes=options.max_bytes,
        timeout_s=options.url_timeout_s,
        allow_private=options.allow_private_urls,
    )


def read_data_url(url: str, name: str, options: ImageOptions) -> bytes:
    """Return the data of a data URL. Raise UserError if it is malformed or too large.

    The text is decoded in pieces, because decoding it at once would take 100 times its memory for a list of escapes.
    """
    start = url.find(",", 0, MAX_HEAD_CHARS) + 1
    if not start:
        refuse(name, f"a data URL must have a comma before its data, within {MAX_HEAD_CHARS} characters")
    if len(url) - start > options.max_bytes * 3:  # percent-encoding triples the length at most
        refuse(name, f"it is larger than the limit of {options.max_bytes} bytes")
    is_base64 = url[: start - 1].lower().rstrip().endswith(";base64")
    data = bytearray()
    rest = b""  # base64 digits that are not decoded yet
    for piece in _percent_decoded(url, start):
        if is_base64:
            digits = rest + piece.translate(_BASE64, b" \t\n\r\v\f")
            cut = len(digits) - len(digits) % 4
            # Keep the last group of four for the next round, because only the end of the data may have padding.
            cut = cut - 4 if cut == len(digits) and cut else cut
            piece, rest = _base64_decoded(digits[:cut], name), digits[cut:]
        data += piece
        if len(data) > options.max_bytes:
            refuse(name, f"it is larger than the limit of {options.max_bytes} bytes")
    if rest:
        data += _base64_decoded(rest.rstrip(b"="), name, is_last=True)
    return bytes(data)


def _percent_decoded(url: str, start: int) -> Iterator[bytes]:
    """Yield the percent-decoded bytes of the text from `start` on, in pieces. A percent sign without digits is kept."""
    end = start
    while end < len(url):
        start, end = end, min(end + DATA_URL_PIECE, len(url))
        # Do not cut an escape in two.
        if (sign := url.rfind("%", max(start, end - 2), end)) > start:
            end = sign if end < len(url) else end
        piece = url[start:end].encode("utf-8", "replace")
        yield _unescaped(piece) if b"%" in piece else piece


def _unescaped(piece: bytes) -> bytes:
    """Return the same as `urllib.parse.unquote_to_bytes`, but without building a list of all escapes."""
    values = np.frombuffer(piece, dtype=np.uint8)
    digits = _HEX_DIGITS[values]
    is_escape = np.zeros(len(values), dtype=bool)
    is_escape[:-2] = (values[:-2] == ord("%")) & (digits[1:-1] < 16) & (digits[2:] < 16)
    (signs,) = is_escape.nonzero()
    made = values.copy()
    made[signs] = digits[signs + 1] * 16 + digits[signs + 2]
    keep = np.ones(len(values), dtype=bool)
    keep[signs + 1] = keep[signs + 2] = False
    return made[keep].tobytes()


def _base64_decoded(digits: bytes, name: str, *, is_last: bool = False) -> bytes:
    # Check the digits here, because Python versions differ in which other characters they skip.
    if digits.translate(None, _BASE64_DIGITS) or (is_last and len(digits) % 4 == 1):
        refuse(name, "its base64 data is damaged")
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def _read_path(path: str | os.PathLike[str], name: str, options: ImageOptions) -> bytes:
    if not options.allow_paths:
        refuse(name, "file paths are not allowed here; send an http(s) URL or a data URL")
    try:
        if Path(path).is_dir():
            refuse(name, "it is a folder, not a picture")
        with open(path, "rb") as file:
            return file.read(options.max_bytes + 1)
    except FileNotFoundError:
        refuse(name, "there is no such file")
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in the name
        refuse(name, (error.strerror if isinstance(error, OSError) else None) or str(error))


def _read_file(file: BinaryFile, name: str, options: ImageOptions) -> bytes:
    try:
        seek = getattr(file, "seek", None)
        if seek is not None and getattr(file, "seekable", lambda: True)():
            seek(0)  # as PIL does, so that a file may be given twice
        data = file.read(options.max_bytes + 1)
    except Exception as error:  # any object with a read() may be given
        refuse(name, str(error))
    if not isinstance(data, bytes | bytearray):
        refuse(name, "the file must be open in binary mode")
    return bytes(data)
