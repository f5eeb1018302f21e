"""What a picture may cost: known before it is decoded, and kept while it is."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.serve.hostile_pictures import jpeg_of_scans, jpeg_segments, png_of_many_chunks, saved
from vl2.errors import UserError
from vl2.process import decode
from vl2.process.decode import MAX_JPEG_SCANS, ImageOptions, count_jpeg_scans, decode_image, open_header

OPTIONS = ImageOptions()


def noisy(mode: str = "RGB", size: tuple[int, int] = (97, 61)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(values).convert("RGBA").convert(mode) if mode != "RGBA" else Image.fromarray(values)


def scans_of(data: bytes) -> int:
    return sum(marker == 0xDA for marker, _ in jpeg_segments(data))


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        # The scripts of libjpeg's jpeg_simple_progression: 10 scans for YCbCr, 6 for one component, 18 for four.
        ("RGB", {"progressive": True}, 10),
        ("L", {"progressive": True}, 6),
        ("CMYK", {"progressive": True}, 18),
        ("RGB", {}, 1),
        ("RGB", {"restart_marker_blocks": 1}, 1),
        ("RGB", {"progressive": True, "restart_marker_rows": 1}, 10),
    ],
)
def test_the_scans_of_ordinary_jpegs_are_counted(mode: str, options: dict[str, object], expected: int) -> None:
    data = saved(noisy(mode), "JPEG", quality=95, **options)
    assert count_jpeg_scans(data) == scans_of(data) == expected
    assert decode_image(data, "x", OPTIONS).size == (97, 61)


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = jpeg_of_scans(64, 48, MAX_JPEG_SCANS)
    assert decode_image(most, "x", OPTIONS).size == (64, 48)
    more = jpeg_of_scans(64, 48, MAX_JPEG_SCANS + 1)
    assert count_jpeg_scans(more) == MAX_JPEG_SCANS + 1
    assert count_jpeg_scans(jpeg_of_scans(64, 48, 3000), most=70) == 71
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match="x: it is a JPEG of more than 50 scans, the limit"):
        decode_image(more, "x", OPTIONS)


def test_scans_are_found_behind_restarts_and_repeated_marker_bytes() -> None:
    data = jpeg_of_scans(64, 48, 60)
    # A marker may be preceded by any number of 0xFF.
    assert count_jpeg_scans(data.replace(b"\xff\xda", b"\xff\xff\xff\xda")) == 60
    # Restart markers and TEM have no length to skip by: what follows them is seen.
    first = data.index(b"\xff\xda")
    for bare in (b"\xff\xd0", b"\xff\x01", b"\xff\xd7\xff\xd0"):
        assert count_jpeg_scans(data[:first] + bare + data[first:]) == 60


def test_what_looks_like_scans_inside_other_segments_is_not_counted() -> None:
    data = saved(noisy(), "JPEG")
    thumbnails = b"\xff\xda\0\x08" * 500
    comment = b"\xff\xfe" + struct.pack(">H", len(thumbnails) + 2) + thumbnails
    with_comment = data[:2] + comment + data[2:]
    assert count_jpeg_scans(with_comment) == 1
    assert decode_image(with_comment, "x", OPTIONS).tobytes() == decode_image(data, "x", OPTIONS).tobytes()
    # Behind the end marker a second picture may follow, which is not decoded.
    assert count_jpeg_scans(data + data * 60) == 1


def test_counting_takes_no_longer_for_a_file_of_marker_bytes() -> None:
    # Looking again from every byte would take hours.
    assert count_jpeg_scans(b"\xff\xd8\xff\xda\0\x02" + b"\xff" * 20_000_000) == 1


def test_a_png_of_too_many_chunks_is_refused_before_they_are_read() -> None:
    assert decode_image(png_of_many_chunks(decode.MAX_PNG_CHUNKS // 10), "x", OPTIONS).size == (8, 8)
    with pytest.raises(UserError, match="x: it is a PNG of more than 100000 chunks, the limit"):
        decode_image(png_of_many_chunks(decode.MAX_PNG_CHUNKS), "x", OPTIONS)


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 400)


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(decode.to_rgb(image, "x", OPTIONS))


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_strips_are_laid_on_white_as_the_whole_is(mode: str) -> None:
    image = noisy(mode)
    rgba = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    assert (rgb(image) == np.asarray(expected)).all()


@pytest.mark.usefixtures("small_strips")
def test_a_picture_that_is_transparent_in_one_strip_only_is_laid_on_white() -> None:
    image = noisy("RGB").convert("RGBA")
    image.putpixel((5, 60), (10, 20, 30, 0))
    expected = np.asarray(noisy("RGB")).copy()
    expected[60, 5] = 255
    assert (rgb(image) == expected).all()


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_strips_of_deep_grey_are_scaled_by_the_range_of_the_whole(dtype: type) -> None:
    values = np.random.default_rng(1).integers(0, 60_000, (61, 97)).astype(dtype)
    low, high = (0, 65535)
    if dtype is not np.uint16:
        values[3, 4], values[60, 90] = -5000, 70_000
        low, high = -5000, 70_000
    expected = np.rint((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)
    assert (rgb(Image.fromarray(values)) == expected[..., None]).all()


def test_what_a_picture_takes_to_decode_grows_with_its_pixels_and_lines() -> None:
    def cost(size: tuple[int, int], kind: str) -> int:
        data = saved(Image.new("RGB", size), kind)
        return decode.decoding_bytes(open_header(data, "x", OPTIONS), 0)

    for kind in ("PNG", "JPEG", "WEBP", "JPEG2000"):
        # At least Pillow's own image and the RGB image, four bytes each.
        assert cost((2000, 1000), kind) - cost((1000, 1000), kind) >= 8_000_000
    assert cost((1, 60_000), "PNG") - cost((300, 200), "PNG") > 59_000 * 16


@pytest.mark.parametrize(("orientation", "size"), [(1, (24, 16)), (3, (24, 16)), (6, (16, 24)), (8, (16, 24))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_the_size_of_an_upright_picture_is_known_from_its_header(
    kind: str, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.new("RGB", (24, 16)), kind, exif=exif)
    assert decode.upright_size(open_header(data, "x", OPTIONS), OPTIONS) == size
    assert decode_image(data, "x", OPTIONS).size == size
    as_stored = ImageOptions(exif_orientation=False)
    assert decode.upright_size(open_header(data, "x", as_stored), as_stored) == decode_image(data, "x", as_stored).size


def test_a_decoder_without_memory_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise MemoryError

    data = saved(noisy(), "PNG")
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UserError, match="x: there is not enough memory to decode it"):
        decode_image(io.BytesIO(data).getvalue(), "x", OPTIONS)
