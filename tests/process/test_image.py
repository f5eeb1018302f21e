from __future__ import annotations

import base64
import hashlib
import io
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import vl2.process.image as image_module
from vl2.errors import UserError
from vl2.process.image import RELEASED_OPTIONS, ImageOptions, open_image

from .golden import REFERENCE, load

PHOTO = REFERENCE / "images" / "photo640x480.png"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(left: Image.Image, right: Image.Image) -> bool:
    return left.mode == right.mode and left.size == right.size and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("case", load("images.json")["images"], ids=lambda case: case["name"])
def test_released_options_read_pictures_as_the_released_code_does(case):
    image = open_image(REFERENCE / case["file"], RELEASED_OPTIONS)
    assert list(image.size) == case["size"]
    assert hashlib.sha256(np.asarray(image).tobytes()).hexdigest() == case["rgb_sha256"]


def test_every_kind_of_source_gives_the_same_picture():
    data = PHOTO.read_bytes()
    text = base64.b64encode(data).decode()
    expected = Image.open(PHOTO).convert("RGB")
    with open(PHOTO, "rb") as file:
        sources = [
            PHOTO,
            str(PHOTO),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
            Image.open(PHOTO),
            f"data:image/png;base64,{text}",
            f"DATA:image/png;charset=x;BASE64,{text[:40]}\n{text[40:].rstrip('=')}",
            "data:," + "".join(f"%{byte:02x}" for byte in data),
        ]
        for source in sources:
            assert same(open_image(source), expected)
        assert same(open_image(file), expected)  # an open file may be given twice


def test_a_callers_image_is_never_changed():
    image = Image.new("RGBA", (4, 3), (10, 20, 30, 40))
    image.getexif()[0x0112] = 6
    before = image.tobytes()
    result = open_image(image)
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (4, 3), before)
    assert image.getexif()[0x0112] == 6
    result.putpixel((0, 0), (1, 2, 3))
    plain = Image.new("RGB", (2, 2))
    open_image(plain).putpixel((0, 0), (9, 9, 9))
    assert plain.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_unless_switched_off(orientation, kind):
    image = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    assert same(open_image(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert same(open_image(data, RELEASED_OPTIONS), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_a_good_picture():
    image = Image.new("RGB", (8, 8), "red")
    data = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(data).size == (8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F", "RGBX"])
def test_every_mode_becomes_rgb_and_with_all_switches_off_as_pillow_does_it(mode):
    image = Image.linear_gradient("L").resize((20, 12))
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    assert open_image(image).mode == "RGB"
    assert same(open_image(image, RELEASED_OPTIONS), image.convert("RGB"))


def test_modes_that_only_arise_in_memory_are_converted():
    palette = Image.linear_gradient("L").resize((20, 12)).convert("P").convert("PA")
    assert same(open_image(palette, RELEASED_OPTIONS), palette.convert("RGB"))
    assert open_image(palette).mode == "RGB"


def test_transparency_is_laid_on_white_unless_switched_off():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert [open_image(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    assert open_image(image, ImageOptions(flatten_alpha=False)).getpixel((1, 0)) == (0, 0, 0)
    half = Image.new("LA", (1, 1), (0, 128))
    assert open_image(half).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize(("mode", "key"), [("P", 1), ("L", 0), ("RGB", (0, 0, 0)), ("1", 0)])
def test_transparency_named_by_a_color_is_laid_on_white(mode, key):
    image = Image.new("L", (2, 1))
    image.putpixel((1, 0), 255)
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.putpixel((0, 0), 1)
        data = encoded(image, transparency=key)
        expected = [(255, 255, 255), (9, 9, 9)]
    else:
        data = encoded(image.convert(mode), transparency=key)
        expected = [(255, 255, 255), (255, 255, 255)]
    opened = open_image(data)
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == expected


def test_an_opaque_alpha_channel_changes_nothing():
    image = Image.linear_gradient("L").resize((20, 12)).convert("RGBA")
    assert same(open_image(image), image.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    opened = open_image(encoded(Image.fromarray(values), kind))
    assert [opened.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 128, 200]], np.int32), [0, 128, 200]),
        (np.array([[-100, 1, 100]], np.int32), [0, 129, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[0, np.nan, np.inf]], np.float32), [0, 0, 0]),
        (np.array([[0, 0, 0]], np.int32), [0, 0, 0]),
    ],
)
def test_wide_grey_is_scaled_by_the_values_found(values, expected):
    opened = open_image(Image.fromarray(values))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000"])
def test_allowed_formats_are_read(kind):
    assert open_image(encoded(Image.new("RGB", (32, 32), "white"), kind)).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["EPS", "PDF", "TGA", "PCX", "DDS", "SGI", "MSP", "XBM", "IM"])
def test_other_formats_are_refused(kind):
    image = Image.new("1" if kind in ("MSP", "XBM") else "RGB", (32, 32))
    with pytest.raises(UserError, match=r"known format(: it is | \(allowed: PNG, JPEG, .*AVIF\))"):
        open_image(encoded(image, kind))


def png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10001, 10000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header_and_named(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=rf"{size[0]} x {size[1]}, more than the limit of 100000000 pixels"):
            open_image(png_of(*size))


def test_the_pixel_limit_is_ours_and_pillows_global_stays(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(PHOTO).size == (640, 480)
        with pytest.raises(UserError, match="640 x 480, more than the limit of 1000 pixels"):
            open_image(PHOTO, ImageOptions(max_pixels=1000))
        with pytest.raises(UserError, match="4 x 4, more than the limit"):
            open_image(Image.new("RGB", (4, 4)), ImageOptions(max_pixels=15))
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_bomb_inside_an_icon_is_refused():
    inner = png_of(60000, 60000)
    icon = b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(UserError, match="60000 x 60000"):
        open_image(icon)


def test_bytes_are_limited():
    limit = ImageOptions(max_bytes=1000)
    data = PHOTO.read_bytes()
    for source in (data, PHOTO, io.BytesIO(data), f"data:;base64,{base64.b64encode(data).decode()}"):
        with pytest.raises(UserError, match="limit of 1000 bytes"):
            open_image(source, limit)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    long = tmp_path / ("folder" * 12) / "none.png"  # its middle is left out in the message
    text = Path("notes.txt")
    text.write_text("hello")
    empty = tmp_path / "empty.png"
    empty.touch()
    for source, why in [
        (tmp_path / "none.png", "none.png: there is no such file"),
        (long, "\\.\\.\\..*none.png: there is no such file"),
        (tmp_path, "it is a folder"),
        (text, "notes.txt: it is not a picture in a known format"),
        (empty, "it is empty"),
        (b"", "<0 bytes>: it is empty"),
        ("", "it is a folder|no such file"),
        ("a\0b", "a\\?b: embedded null"),
        ("x" * 5000, "x\\.\\.\\.x+: File name too long"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,@@@", "base64 data is damaged"),
        ("data:,hello", "not a picture"),
        (io.StringIO("text"), "binary"),
        (PHOTO.read_bytes()[:2000], "<2000 bytes>: it is damaged or cut off"),
    ]:
        with pytest.raises(UserError, match=why) as caught:
            open_image(source)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", [None, 3, 1.5, ["a"], {"url": "x"}, object(), np.zeros((2, 2, 3))])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(UserError, match="must be a path"):
        open_image(source)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path: Path):
    path = tmp_path / "secret.png"
    path.write_bytes(PHOTO.read_bytes())
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        open_image(path)


def test_a_closed_image_is_refused():
    image = Image.open(PHOTO)
    image.close()
    with pytest.raises(UserError):
        open_image(image)


def test_paths_and_urls_can_be_forbidden():
    with pytest.raises(UserError, match="file paths are not allowed here"):
        open_image(str(PHOTO), ImageOptions(allow_paths=False))
    with pytest.raises(UserError, match="URLs are not allowed here"):
        open_image("https://example.com/a.png", ImageOptions(allow_urls=False))


@pytest.mark.parametrize("options", [{"max_pixels": 0}, {"max_bytes": 0}, {"url_timeout_s": 0}])
def test_limits_must_be_positive(options):
    with pytest.raises(UserError):
        ImageOptions(**options)


@given(
    body=st.text(st.sampled_from("%4Aa1fG+ é-_=/\n"), max_size=60), is_base64=st.booleans(), piece=st.integers(3, 70)
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_data_url_in_pieces_holds_what_it_holds_in_one(body, is_base64, piece, monkeypatch):
    monkeypatch.setattr(image_module, "DATA_URL_PIECE", piece)
    expected: bytes | None = unquote_to_bytes(body)
    if is_base64:
        try:
            digits = "".join(expected.decode("ascii").split()).translate(str.maketrans("-_", "+/"))
            expected = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
        except ValueError:
            expected = None
    try:
        found: bytes | None = image_module.read_data_url(f"data:{';base64' * is_base64},{body}", "it", ImageOptions())
    except UserError:
        found = None
    assert (found or None) == (expected or None)  # padding alone is nothing, whichever way it is said


@pytest.mark.parametrize("body", ["%41" * 3_000_000, "%%%" * 3_000_000, "A " * 4_500_000, "%20" * 3_000_000])
@pytest.mark.parametrize("head", ["data:,", "data:;base64,"])
def test_a_large_data_url_takes_little_more_memory_than_its_data(head, body):
    url = head + body
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            open_image(url, ImageOptions(max_bytes=4_000_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000
