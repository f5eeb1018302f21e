"""Bytes of a picture to an RGB image, whatever the bytes are: limits first, one kind of error.

The released model calls Pillow's `convert("RGB")` and nothing else. Three things are done better by
default, and each can be switched off: EXIF orientation, transparency, more than 8 bits per channel.

Golden: tests/golden/reference/processor/images.json (`rgb_sha256`).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from PIL import Image, ImageFile

from vl2.errors import UserError
from vl2.process.foreign import foreign_format

# Pictures only. Pillow also opens formats that start a program (EPS), are containers or have no signature.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")

_EXIF_ORIENTATION = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Where pictures may come from, how large they may be, and how they become RGB."""

    exif_orientation: bool = True  # turn as the camera says; the released model does not
    flatten_alpha: bool = True  # lay transparent pictures on white; the released model drops the alpha channel
    scale_deep: bool = True  # bring 16-bit and float grey to 8 bits; the released model clips at 255
    max_pixels: int = 100_000_000
    max_bytes: int = 100_000_000
    allow_paths: bool = True  # a server turns this off, or its clients read its files
    allow_urls: bool = True
    allow_private_urls: bool = False  # addresses inside the own network
    url_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_bytes < 1 or self.url_timeout_s <= 0:
            raise UserError(
                "max_pixels, max_bytes and url_timeout_s must be positive, "
                f"got {self.max_pixels}, {self.max_bytes} and {self.url_timeout_s}"
            )


RELEASED_OPTIONS = ImageOptions(exif_orientation=False, flatten_alpha=False, scale_deep=False)


def refuse(name: str, why: str) -> NoReturn:
    """Raise the one-line UserError for a picture."""
    raise UserError(f"cannot read image {name}: {' '.join(why.split())}")


def decode_image(data: bytes, name: str, options: ImageOptions) -> Image.Image:
    """Decode the first frame of a picture to RGB. UserError, naming the picture, for anything wrong with it."""
    if not data:
        refuse(name, "it is empty")
    if len(data) > options.max_bytes:
        refuse(name, f"it is larger than the limit of {options.max_bytes} bytes")
    try:
        image = _open_header(data, name, options)
        image.load()
    except UserError:
        raise
    except Image.DecompressionBombError:
        refuse(name, f"it holds more pixels than the limit of {options.max_pixels}")
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged data
        refuse(name, f"it is damaged or cut off ({_brief(error)})")
    return to_rgb(image, name, options)


def to_rgb(image: Image.Image, name: str, options: ImageOptions) -> Image.Image:
    """Return a new RGB image; the one given stays as it is."""
    check_size(image.size, name, options)
    try:
        if options.exif_orientation:
            image = _turn_upright(image)
        if options.scale_deep and image.mode in _DEEP_MODES:
            image = _scale_to_8_bits(image)
        elif options.flatten_alpha and image.has_transparency_data:
            image = _lay_on_white(image)
        rgb = image.convert("RGB")
        # Upright and opaque now: with its old EXIF or transparency beside it, it would be turned a second time.
        rgb.info.clear()
    except Exception as error:  # a closed file, a damaged lazy image, a mode without conversion
        refuse(name, f"it cannot be converted to RGB ({_brief(error)})")
    return rgb


def check_size(size: tuple[int, int], name: str, options: ImageOptions) -> None:
    """Refuse a picture without pixels or with too many."""
    width, height = size
    if width < 1 or height < 1:
        refuse(name, f"its size is {width} x {height}, and each side must be at least 1 pixel")
    if width * height > options.max_pixels:
        refuse(name, f"its size is {width} x {height}, more than the limit of {options.max_pixels} pixels")


def _open_header(data: bytes, name: str, options: ImageOptions) -> ImageFile.ImageFile:
    """Read the header with the first format that fits, and check the size before anything is decoded.

    Not `Image.open`: its limit is a global of the process, and it warns or raises before the size is known.
    """
    Image.init()  # registers the plugins, once
    if data[:4] == b"\0\0\1\0":
        _check_icon(data, name, options)
    damage = ""
    for kind in FORMATS:
        if kind not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[kind]
        if accept is None or accept(data[:16]) is not True:
            continue
        try:
            image = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            damage = f"its {kind} header is damaged ({_brief(error)})"
            continue
        check_size(image.size, name, options)
        return image
    told = foreign_format(data)
    if told is not None:
        refuse(name, f"it is not a picture in a known format: {told}")
    refuse(name, damage or f"it is not a picture in a known format (allowed: {', '.join(FORMATS)})")


def _check_icon(data: bytes, name: str, options: ImageOptions) -> None:
    """Check the pictures inside an ICO file, which Pillow decodes while it opens the file."""
    for index in range(int.from_bytes(data[4:6], "little")):
        entry = data[6 + 16 * index : 22 + 16 * index]
        if len(entry) < 16:
            return
        start = int.from_bytes(entry[12:16], "little")
        if data[start : start + 8] == _PNG_SIGNATURE and len(data) >= start + 24:
            check_size(struct.unpack(">II", data[start + 16 : start + 24]), name, options)


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Damaged EXIF data is no reason to refuse a good picture."""
    try:
        method = _TURN.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return image
    return image if method is None else image.transpose(method)


def _lay_on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    lowest, _ = rgba.getchannel("A").getextrema()
    if lowest == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Bring deep grey to 8 bits: by its format's range if that is known, else by the values found."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0:
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next((step for step in steps if high <= step), high)
    scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
