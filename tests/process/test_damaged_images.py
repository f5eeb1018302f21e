"""Damaged files of many kinds: each is refused in one line, or read as far as the decoder goes; never a crash."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.process.image import ImageOptions, open_image

KINDS = {
    "PNG": {},
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "GIF": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "PPM": {},
    "ICO": {"sizes": [(32, 24)]},
    "JPEG2000": {},
}
CUTS = (1, 2, 4, 8, 12, 16, 24, 40)
OPTIONS = ImageOptions(max_pixels=4_000_000)


def noisy_picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(values)


def good_files() -> dict[str, bytes]:
    files = {}
    for kind, options in KINDS.items():
        buffer = io.BytesIO()
        noisy_picture().save(buffer, kind.split()[0], **options)
        files[kind] = buffer.getvalue()
    return files


GOOD = good_files()


def cut_short(kind: str, data: bytes) -> Iterator[tuple[str, bytes, bool]]:
    for length in CUTS:
        yield f"{kind} cut to {length}", data[:length], True
    for tenths in range(1, 10):
        # Losing the tail of a picture can leave a whole one, so only the header's loss must be refused.
        yield f"{kind} cut to {tenths} tenths", data[: len(data) * tenths // 10], False


def flipped(kind: str, data: bytes) -> Iterator[tuple[str, bytes, bool]]:
    rng = random.Random(kind)
    for region, limit in (("header", min(64, len(data))), ("body", len(data))):
        for trial in range(8):
            damaged = bytearray(data)
            for _ in range(1 + trial):
                damaged[rng.randrange(limit)] ^= 1 << rng.randrange(8)
            yield f"{kind} {region} flipped {trial}", bytes(damaged), False


def overwritten(kind: str, data: bytes) -> Iterator[tuple[str, bytes, bool]]:
    half = len(data) // 2
    yield f"{kind} without magic", b"\0" * 12 + data[12:], True
    yield f"{kind} with text for magic", b"<!DOCTYPE html>" + data[15:], True
    yield f"{kind} half zero", data[:half] + b"\0" * half, False
    yield f"{kind} half 255", data[:half] + b"\xff" * half, False
    yield f"{kind} middle gone", data[: half // 2] + data[half:], False


def png(width: int, height: int, depth: int = 8, color: int = 2, body: bytes = b"\0" * 99) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def with_sizes(data: bytes, at: int, form: str, width: int, height: int) -> bytes:
    return data[:at] + struct.pack(form, width, height) + data[at + struct.calcsize(form) :]


def huge() -> Iterator[tuple[str, bytes, bool]]:
    sizes = [(60000, 60000), (65535, 65535), (65535, 62), (0, 10), (10, 0)]
    for width, height in sizes:
        must_fail = True
        yield f"PNG of {width} x {height}", png(width, height), must_fail
        yield f"GIF of {width} x {height}", with_sizes(GOOD["GIF"], 6, "<HH", width, height), width * height > 10**7
        yield f"BMP of {width} x {height}", with_sizes(GOOD["BMP"], 18, "<ii", width, height), must_fail
        yield f"PPM of {width} x {height}", f"P6 {width} {height} 255\n".encode() + b"\0" * 99, must_fail
        jpeg = GOOD["JPEG"]
        at = jpeg.index(b"\xff\xc0") + 5
        yield f"JPEG of {width} x {height}", with_sizes(jpeg, at, ">HH", height, width), width * height > 10**7
    yield "PNG of 2 ^ 31", png(2**31 - 1, 2**31 - 1), True
    yield "PNG with a bad depth", png(4, 4, depth=77), True
    yield "PNG with a bad colour type", png(4, 4, color=9), True
    yield "PNG bomb", png(50000, 50000, body=b"\0" * 10_000_000), True
    yield "PPM with many digits", b"P6 " + b"9" * 400 + b" 1 255\n", True
    yield "PPM with letters", b"P6 abc def 255\n", True
    yield "PPM plain, short", b"P3 4 4 255\n1 2 3", False
    yield "BMP of negative width", with_sizes(GOOD["BMP"], 18, "<ii", -5, 5), True


def no_pictures() -> Iterator[tuple[str, bytes, bool]]:
    rng = random.Random(1)
    yield "zero bytes", b"", True
    yield "one zero", b"\0", True
    yield "zeros", b"\0" * 5000, True
    yield "text", b"hello, world" * 50, True
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", True
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", True
    yield "pdf", b"%PDF-1.7\n" + b"x" * 100, True
    yield "zip", b"PK\3\4" + b"\0" * 100, True
    for length in (10, 100, 1000, 10000):
        yield f"{length} random bytes", rng.randbytes(length), True
    for magic in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"P6", b"\0\0\1\0"):
        for length in (0, 30, 300):
            # Random dimensions may, by chance, be those of some picture.
            yield f"{magic!r} and {length} random bytes", magic + rng.randbytes(length), length == 0
    for magic in (b"RIFF\x40\0\0\0WEBPVP8 ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x20ftypavif"):
        yield f"{magic!r} and random bytes", magic + rng.randbytes(300), True


def all_files() -> list[tuple[str, bytes, bool]]:
    files = [*huge(), *no_pictures()]
    for kind, data in GOOD.items():
        files += [*cut_short(kind, data), *flipped(kind, data), *overwritten(kind, data)]
    return files


FILES = all_files()


def outcome(data: bytes) -> str | Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on some damage that it reads over
        try:
            return open_image(data, OPTIONS)
        except UserError as error:
            return str(error)


@pytest.mark.parametrize("kind", GOOD)
def test_the_files_are_good_before_they_are_damaged(kind):
    assert open_image(GOOD[kind], OPTIONS).size == (32, 24)


def test_there_are_enough_damaged_files():
    assert len(FILES) >= 200
    assert len({data for _, data, _ in FILES}) >= 200


@pytest.mark.parametrize(("name", "data", "must_fail"), FILES, ids=[name for name, *_ in FILES])
def test_damage_is_refused_in_one_line_or_read_over(name, data, must_fail):
    result = outcome(data)
    if isinstance(result, Image.Image):
        assert not must_fail, f"{name} was read"
        assert result.mode == "RGB"
        assert 0 < result.size[0] * result.size[1] <= OPTIONS.max_pixels
        assert len(result.tobytes()) == 3 * result.size[0] * result.size[1]
    else:
        assert "\n" not in result
        assert len(result) < 300
        assert result.startswith(f"cannot read image <{len(data)} bytes>: ")


def test_most_files_cut_short_are_refused():
    cut = [data for name, data, _ in FILES if " cut to " in name]
    refused = sum(isinstance(outcome(data), str) for data in cut)
    assert refused / len(cut) > 0.9
