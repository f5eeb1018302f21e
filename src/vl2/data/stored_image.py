"""The stored images of a record: their bytes, and the picture."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from vl2.data.record import StoredImage
from vl2.errors import UserError
from vl2.process.image import ImageOptions, open_image

MAX_BYTES = ImageOptions().max_bytes


def read_stored(image: StoredImage, root: Path | None = None) -> bytes:
    """Return the bytes of the image file. `root` is the folder of the file that holds the record.

    Without it only bytes are taken: what a record says is no place to fetch pictures from.
    """
    if image.data is not None:
        return image.data
    if root is None:
        raise UserError(f"image {image.path} is a path: read the record from its store, which puts the bytes in")
    path = root / (image.path or "")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read image {path}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"cannot read image {path}: it is larger than the limit of {MAX_BYTES} bytes")
    return data


def open_stored(image: StoredImage, root: Path | None = None) -> Image.Image:
    """Return the picture, RGB and upright. UserError, one line, if it is missing or damaged."""
    return open_image(read_stored(image, root))


def content_hash(data: bytes) -> str:
    """Return the name of some bytes by their content: SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
