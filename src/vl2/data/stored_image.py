"""Read the bytes of a record's images, and decode them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from vl2.data.record import StoredImage
from vl2.errors import UserError
from vl2.process.image import ImageOptions, open_image

MAX_BYTES = ImageOptions().max_bytes


def read_stored(image: StoredImage, root: Path | None = None) -> bytes:
    """Return the bytes of an image. `root` is the folder of the file that holds the record.

    Without `root`, raise UserError for an image that is a path, because paths in a record are untrusted.
    """
    if image.data is not None:
        return image.data
    if root is None:
        raise UserError(f"image {image.path} is a path: read the record from its store, which loads the bytes")
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
    """Return the image, RGB and upright. Raise UserError if it is missing or damaged."""
    return open_image(read_stored(image, root))


def content_hash(data: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
