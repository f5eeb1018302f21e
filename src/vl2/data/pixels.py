"""The picture of a stored image, from its bytes alone."""

from __future__ import annotations

from PIL import Image

from vl2.data.record import StoredImage
from vl2.process.image import ImageOptions, open_image

# What a record says is no place to fetch pictures from: reading a store has put the bytes in.
_ONLY_BYTES = ImageOptions(allow_paths=False, allow_urls=False)


def open_stored(image: StoredImage) -> Image.Image:
    """Return the picture, RGB and upright. UserError if it cannot be opened."""
    return open_image(image.data or b"", _ONLY_BYTES)
