"""Open a picture from wherever it is: a path, a URL, a data URL, bytes, an open file, a PIL image.

Everything becomes bytes within the limits of `ImageOptions`, then an RGB image (`decode.py`).
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote_to_bytes

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


@runtime_checkable
class BinaryFile(Protocol):
    """An open file, as far as it is needed here."""

    def read(self, size: int, /) -> bytes: ...


ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | BinaryFile


def is_image_source(value: object) -> bool:
    """Tell whether `open_image` accepts a value of this type; the value may still be no picture."""
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | BinaryFile)


def open_image(source: ImageSource, options: ImageOptions | None = None) -> Image.Image:
    """Return the picture as a new RGB image, upright. UserError names the source, what is wrong and what is allowed."""
    options = options or ImageOptions()
    name = describe_source(source)
    if isinstance(source, Image.Image):
        check_size(source.size, name, options)
        # A copy: loading, turning and converting must not change what the caller holds.
        return to_rgb(_copy(source, name), name, options)
    return decode_image(_read(source, name, options), name, options)


def read_source(source: ImageSource, options: ImageOptions) -> bytes:
    """Return the bytes of a picture, undecoded; of anything but a PIL image."""
    return _read(source, describe_source(source), options)


def describe_source(source: object) -> str:
    """Name a source in a few printable characters."""
    if isinstance(source, Image.Image):
        return f"<PIL image, {source.mode}, {source.size[0]} x {source.size[1]}>"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if isinstance(source, str) and source[:5].lower() == "data:":
        return f"<data URL of {len(source)} characters, {_shorten(source[5:].partition(',')[0], 40)}>"
    if isinstance(source, str | os.PathLike):
        return _shorten(str(source), _MAX_NAME)
    name = getattr(source, "name", None)
    return _shorten(name, _MAX_NAME) if isinstance(name, str) else f"<{type(source).__name__}>"


def _shorten(text: str, limit: int) -> str:
    """Leave out the middle of a long text: of a path, the end says most."""
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
            return _read_data_url(source, name, options)
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


def _read_data_url(url: str, name: str, options: ImageOptions) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        refuse(name, "a data URL must have a comma before its data")
    if len(body) > options.max_bytes * 3:  # percent-encoding triples the length at most
        refuse(name, f"it is larger than the limit of {options.max_bytes} bytes")
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        text = "".join(unquote_to_bytes(body).decode("ascii").split()).translate(str.maketrans("-_", "+/"))
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        refuse(name, "its base64 data is damaged")


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
