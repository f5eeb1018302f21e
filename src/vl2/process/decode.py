"""Decode the bytes of a picture to an RGB image. Limits are checked first, and every failure is one UserError.

The released model only calls Pillow's `convert("RGB")`. By default this module also handles EXIF orientation,
transparency and more than 8 bits per channel. Each of the three can be switched off.

`decoding_bytes` estimates from the header how much memory decoding takes. This module needs no PyTorch, so that a
process that only decodes stays small (`decode_worker.py`).

Golden: tests/golden/reference/processor/images.json (`rgb_sha256`).
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from PIL import Image, ImageFile

from vl2.errors import UserError
from vl2.process.not_pictures import describe_non_picture

# Only these are opened. Pillow knows more formats: some start a program (EPS), are containers or have no signature.
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
_SWAPS_SIDES = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Every scan of a JPEG decodes the whole picture again: a scan of 100 bytes takes 33 ms at 36 million pixels. libjpeg
# writes 10 scans for color and 18 for CMYK, and encoders that search for the smallest file about 20. The format allows
# thousands.
MAX_JPEG_SCANS = 50

# Pillow reads chunks one by one in Python, even empty ones. Ordinary files store pixels in chunks of 8 KB or more.
MAX_PNG_CHUNKS = 100_000

# Measured peak memory of decoding to RGB, per pixel: Pillow's own image (up to 4 bytes), the decoder's buffers, and the
# RGB image (4). A progressive JPEG keeps its coefficients, 2 bytes each. WebP and AVIF keep their own frames. OpenJPEG
# holds 4 bytes per channel twice.
_BYTES_PER_PIXEL = {"JPEG": 12, "WEBP": 18, "AVIF": 16, "JPEG2000": 28, "TIFF": 16}
_OTHER_BYTES_PER_PIXEL = 8
_BYTES_PER_LINE = 48  # Pillow's row pointers of two images, and the weights of a resize (32 bytes per column)
_BYTES_ANYWAY = 32 << 20

_STRIP_PIXELS = 1 << 20  # pixels that are converted at once

# The marker that begins a JPEG segment. In the data of a scan, 0xFF is followed by 0 (it then is a data byte) or by a
# restart marker, which has no length field, like SOI and TEM. Before a marker 0xFF may be repeated.
_JPEG_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which sources of pictures are allowed, how large pictures may be, and how they are converted to RGB."""

    exif_orientation: bool = True  # apply the EXIF orientation; the released model does not
    flatten_alpha: bool = True  # blend transparent pictures with white; the released model drops the alpha channel
    scale_deep: bool = True  # scale 16-bit and float gray to 8 bits; the released model clips at 255
    max_pixels: int = 100_000_000
    max_bytes: int = 100_000_000
    allow_paths: bool = True  # a server must turn this off, or its clients could read its files
    allow_urls: bool = True
    allow_private_urls: bool = False  # addresses that are not on the public internet
    url_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_bytes < 1 or self.url_timeout_s <= 0:
            raise UserError(
                "max_pixels, max_bytes and url_timeout_s must be positive, "
                f"got {self.max_pixels}, {self.max_bytes} and {self.url_timeout_s}"
            )


RELEASED_OPTIONS = ImageOptions(exif_orientation=False, flatten_alpha=False, scale_deep=False)


def refuse(name: str, why: str) -> NoReturn:
    """Raise a one-line UserError that names the picture."""
    raise UserError(f"cannot read image {name}: {' '.join(why.split())}")


def decode_image(data: bytes, name: str, options: ImageOptions) -> Image.Image:
    """Decode the first frame of a picture to RGB. Raise UserError, which names the picture, if that fails."""
    return load_rgb(open_header(data, name, options), name, options)


def open_header(data: bytes, name: str, options: ImageOptions) -> ImageFile.ImageFile:
    """Return a picture after reading only its header. Raise UserError if decoding it would exceed a limit."""
    if not data:
        refuse(name, "it is empty")
    if len(data) > options.max_bytes:
        refuse(name, f"it is larger than the limit of {options.max_bytes} bytes")
    with _decoding(name, options):
        return _open_header(data, name, options)


def upright_size(image: ImageFile.ImageFile, options: ImageOptions) -> tuple[int, int]:
    """Return the (width, height) of the decoded picture, as far as the header tells.

    A PNG may store its orientation after its pixels. Width and height of the decoded picture can then be swapped.
    """
    width, height = image.size
    is_turned_by_pillow = image.format == "TIFF"
    # Reading an orientation that is stored after the pixels would decode the picture.
    is_told_later = image.format == "PNG" and "exif" not in image.info
    if not options.exif_orientation or is_turned_by_pillow or is_told_later:
        return width, height
    return (height, width) if _turn_of(image) in _SWAPS_SIDES else (width, height)


def decoding_bytes(image: ImageFile.ImageFile, num_file_bytes: int) -> int:
    """Return the most memory, in bytes, that decoding the picture to RGB and resizing it takes, from its header."""
    width, height = image.size
    per_pixel = _BYTES_PER_PIXEL.get(image.format or "", _OTHER_BYTES_PER_PIXEL)
    return width * height * per_pixel + (width + height) * _BYTES_PER_LINE + 2 * num_file_bytes + _BYTES_ANYWAY


def load_rgb(image: ImageFile.ImageFile, name: str, options: ImageOptions) -> Image.Image:
    """Decode a picture that `open_header` returned. Raise UserError if that fails."""
    with _decoding(name, options):
        image.load()
    return to_rgb(image, name, options)


@contextmanager
def _decoding(name: str, options: ImageOptions) -> Iterator[None]:
    """Turn any exception of a decoder into a UserError."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        refuse(name, "there is not enough memory to decode it")
    except Image.DecompressionBombError:
        refuse(name, f"it holds more pixels than the limit of {options.max_pixels}")
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged data
        refuse(name, f"it is damaged or cut off ({_brief(error)})")


def count_jpeg_scans(data: bytes, most: int = 2**63) -> int:
    """Count the scans of a JPEG file without decoding it. Stop at the end marker, or at one more than `most`."""
    count = at = 0
    while count <= most and (found := _JPEG_SEGMENT.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        count += marker == _START_OF_SCAN
        at += int.from_bytes(data[at : at + 2], "big")
    return count


def to_rgb(image: Image.Image, name: str, options: ImageOptions) -> Image.Image:
    """Return `image` as a new RGB image, converted as the options say. Raise UserError if that fails."""
    check_size(image.size, name, options)
    try:
        if options.exif_orientation:
            image = _turn_upright(image)
        if options.scale_deep and image.mode in _DEEP_MODES:
            rgb = _scale_to_8_bits(image)
        elif options.flatten_alpha and image.has_transparency_data:
            rgb = _lay_on_white(image)
        else:
            rgb = image.convert("RGB")
        # The image is upright now. EXIF data left in `info` would turn it a second time.
        rgb.info.clear()
    except MemoryError:
        refuse(name, "there is not enough memory to convert it")
    except Exception as error:  # a closed file, a damaged lazy image, a mode without conversion
        refuse(name, f"it cannot be converted to RGB ({_brief(error)})")
    return rgb


def check_size(size: tuple[int, int], name: str, options: ImageOptions) -> None:
    """Raise UserError if a picture has no pixels or more than `max_pixels`."""
    width, height = size
    if width < 1 or height < 1:
        refuse(name, f"its size is {width} x {height}, and each side must be at least 1 pixel")
    if width * height > options.max_pixels:
        refuse(name, f"its size is {width} x {height}, more than the limit of {options.max_pixels} pixels")


def _open_header(data: bytes, name: str, options: ImageOptions) -> ImageFile.ImageFile:
    """Read the header with the first format that accepts it, and check the size before anything is decoded.

    `Image.open` is not used: its limit is global to the process, and it warns or raises before the size is known.
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
            if kind == "PNG":
                _check_chunks(data, name)
            image = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            damage = f"its {kind} header is damaged ({_brief(error)})"
            continue
        check_size(image.size, name, options)
        # Counting the marker bytes is quick but may give too many, since thumbnails in the header have scans too. Count
        # exactly only if this first count is over the limit.
        if kind == "JPEG" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
            _check_scans(data, name)
        return image
    told = describe_non_picture(data)
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


def _check_chunks(data: bytes, name: str) -> None:
    """Raise UserError for a PNG with so many chunks that reading them would take long. Nothing is decoded."""
    at = len(_PNG_SIGNATURE)
    for _ in range(MAX_PNG_CHUNKS):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at >= len(data):
            return
    refuse(name, f"it is a PNG of more than {MAX_PNG_CHUNKS} chunks, the limit")


def _check_scans(data: bytes, name: str) -> None:
    if count_jpeg_scans(data, MAX_JPEG_SCANS) > MAX_JPEG_SCANS:
        refuse(name, f"it is a JPEG of more than {MAX_JPEG_SCANS} scans, the limit")


def _turn_upright(image: Image.Image) -> Image.Image:
    """Return the image with its EXIF orientation applied."""
    method = _turn_of(image)
    return image if method is None else image.transpose(method)


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURN.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF data is no reason to refuse a good picture
        return None


def _lay_on_white(image: Image.Image) -> Image.Image:
    is_opaque = True

    def lay(strip: Image.Image) -> Image.Image:
        nonlocal is_opaque
        rgba = strip.convert("RGBA")
        lowest, _ = rgba.getchannel("A").getextrema()
        if lowest == 255:
            return rgba
        is_opaque = False
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)

    flattened = _by_strips(image, lay)
    # An alpha channel that is fully opaque is ignored.
    return image.convert("RGB") if is_opaque else flattened


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deep gray to 8 bits, by the range of its format if that is known, otherwise by the range of its values."""
    if image.mode.startswith("I;16"):
        table = np.rint(np.arange(65536) * (255.0 / 65535.0)).astype(np.uint8)
        return _by_strips(image, lambda strip: Image.fromarray(table[np.asarray(strip)]))
    extremes = [(float(values.min()), float(values.max())) for values in map(_values, _strips(image))]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if low >= 0:
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next((step for step in steps if high <= step), high)

    def scale(strip: Image.Image) -> Image.Image:
        values = _values(strip)
        scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
        return Image.fromarray(np.rint(scaled).astype(np.uint8))

    return _by_strips(image, scale)


def _values(strip: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(strip, dtype=np.float64), posinf=0.0, neginf=0.0)


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB strip by strip, because whole intermediate copies would take several times its memory."""
    rgb = Image.new("RGB", image.size)
    top = 0
    for strip in _strips(image):
        rgb.paste(convert(strip).convert("RGB"), (0, top))
        top += strip.height
    return rgb


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    width, height = image.size
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield image.crop((0, top, width, min(top + step, height)))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
