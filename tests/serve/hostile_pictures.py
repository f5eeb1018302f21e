"""Pictures that are small as files and cost much to decode: made without decoding or holding them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(width: int, height: int, *, depth: int = 8, color_type: int = 2, value: int = 0) -> bytes:
    """Return a picture of one value, row by row. Color types: 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    row = b"\0" + bytes([value]) * (width * channels * depth // 8)
    pack = zlib.compressobj(9)
    data = b"".join([*(pack.compress(row) for _ in range(height)), pack.flush()])
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and bytes of each segment after SOI; those of a scan with its data."""
    at = 2
    while at < len(data):
        marker, start = data[at + 1], at
        at += 2
        if marker == 0xD9:
            yield marker, data[start:at]
            return
        at += int.from_bytes(data[at : at + 2], "big")
        if marker == 0xDA:
            while data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8)):
                at += 1
        yield marker, data[start:at]


def jpeg_of_scans(width: int, height: int, num_scans: int) -> bytes:
    """Return a progressive JPEG, grey, whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (width, height), 90).save(file, "JPEG", progressive=True)
    segments = list(jpeg_segments(file.getvalue()))
    scans = [segment for marker, segment in segments if marker == 0xDA]
    assert num_scans >= len(scans)
    before_end = b"".join(segment for marker, segment in segments if marker != 0xD9)
    return b"\xff\xd8" + before_end + scans[-1] * (num_scans - len(scans)) + b"\xff\xd9"


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, width: int, height: int, kind: str, **options: object) -> bytes:
    return saved(Image.new(mode, (width, height)), kind, **options)


def noise(width: int, height: int, kind: str, **options: object) -> bytes:
    """Return a picture that is work to decode."""
    small = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return saved(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST), kind, **options)


def tiff_of_large_tags(num_tags: int, num_bytes: int) -> bytes:
    """Return a TIFF of one pixel whose tags all hold the same bytes, so that each takes memory of its own."""
    # Size, depth, compression, meaning, place, channels, rows and bytes of the only strip: (tag, type, count, value).
    basic = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
             (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 1)]  # fmt: skip
    tags = [*basic, *((40_000 + number, 7, num_bytes, 8) for number in range(num_tags))]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, count)
        + (struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value))
        for tag, kind, count, value in tags
    )
    at = 8 + num_bytes
    return b"II*\0" + struct.pack("<I", at) + bytes(num_bytes) + struct.pack("<H", len(tags)) + entries + bytes(4)


def ppm_of_odd_depth(width: int, height: int) -> bytes:
    """Return a picture that Pillow decodes value by value in Python: its largest value is neither 255 nor 65535."""
    return f"P6 {width} {height} 200\n".encode() + bytes(width * height * 3)


def png_of_many_chunks(num_chunks: int) -> bytes:
    good = flat_png(8, 8)
    return good[:33] + png_chunk(b"tEXt", b"a\0b") * num_chunks + good[33:]


def png_of_text(num_bytes: int) -> bytes:
    """Return a PNG with compressed text of that length."""
    good = flat_png(8, 8)
    return good[:33] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(num_bytes), 9)) + good[33:]


def png_of_profile(num_bytes: int) -> bytes:
    good = flat_png(8, 8)
    return good[:33] + png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(num_bytes), 9)) + good[33:]


def exif_of_a_turn() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def png_turned_behind_its_pixels(width: int, height: int) -> bytes:
    """Return a PNG whose orientation comes after its data: a quarter turn."""
    good = noise(width, height, "PNG")
    return good[:-12] + png_chunk(b"eXIf", exif_of_a_turn()[6:]) + good[-12:]
