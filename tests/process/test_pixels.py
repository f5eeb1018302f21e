from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import load_file

from vl2.grid import UNTILED, num_tiles
from vl2.process.decode import RELEASED_OPTIONS
from vl2.process.image import open_image
from vl2.process.pixels import cut_tiles, draw_views, fit_inside, pad_to_canvas, pixel_values, tile_canvases
from vl2.process.tiling import choose_canvas

from ..reference import has_other_pixels
from .golden import REFERENCE, load, sha256

GREY = (127, 127, 127)
HALF = (0.5, 0.5, 0.5)
CASES = load("images.json")["images"]
CANVASES = [tuple(size) for size in load("resolutions.json")["candidate_resolutions"]]


def picture(name: str) -> Image.Image:
    return open_image(REFERENCE / "images" / f"{name}.png", RELEASED_OPTIONS)


def u8_sha256(tile: Image.Image) -> str:
    return hashlib.sha256(np.asarray(tile).tobytes()).hexdigest()


@pytest.mark.parametrize("view", ["tiled", "untiled"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tiles_and_pixel_values_are_bit_equal_to_the_released_ones(case, view):
    golden = case["views"][view]
    grid = tuple(golden["spatial_crop"])
    tiles = draw_views(picture(case["name"]), tile_canvases(grid, 384), GREY)
    assert len(tiles) == num_tiles(grid)
    values = pixel_values(tiles, HALF, HALF, 384)
    if grid == UNTILED:  # the released code encodes the same view twice
        tiles, values = tiles * 2, torch.cat([values, values])
    assert list(values.shape) == golden["shape"]
    if has_other_pixels([case["name"]]):
        pytest.skip("Pillow 13 scaled the golden's tall image in another order")
    assert sha256(values) == golden["all_f32_sha256"]
    for tile, value, expected in zip(tiles, values, golden["tiles"], strict=True):
        assert u8_sha256(tile) == expected["u8_hwc_sha256"]
        assert sha256(value) == expected["f32_sha256"]


@pytest.mark.parametrize("path", sorted((REFERENCE / "processor" / "tiles").glob("*.png")), ids=lambda path: path.stem)
def test_tile_pictures_are_the_golden_ones(path):
    name, index = path.stem.rsplit("_", 1)
    tiles = draw_views(picture(name), tile_canvases(UNTILED, 384), GREY) * 2
    assert np.array_equal(np.asarray(tiles[int(index)]), np.asarray(Image.open(path).convert("RGB")))


def test_whole_pixel_tensors_are_the_golden_ones():
    golden = load_file(REFERENCE / "processor" / "pixel_values.safetensors")
    assert golden
    for key, expected in golden.items():
        tiles = draw_views(picture(key.split(".")[0]), tile_canvases(UNTILED, 384), GREY)
        assert torch.equal(pixel_values(tiles, HALF, HALF, 384)[0], expected)


@pytest.mark.parametrize("case", load("resolutions.json")["cases"], ids=lambda case: "x".join(map(str, case["size"])))
def test_placing_rounds_as_the_released_code_does(case):
    for canvas, key in (((384, 384), "global_pad"), (tuple(case["best"]), "local_pad")):
        resized, offset = fit_inside(tuple(case["size"]), canvas)
        if "error" in case[key]:  # the released code crashes on a picture too thin to see
            assert min(resized) == 0
            continue
        assert list(resized) == case[key]["resized"]
        assert list(offset) == case[key]["offset"]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 60), st.integers(1, 60))
def test_padding_equals_pillows(width, height, canvas_width, canvas_height):
    image = Image.fromarray((np.indices((height, width)).sum(0) * 7 % 256).astype(np.uint8)).convert("RGB")
    canvas = (canvas_width, canvas_height)
    ours = pad_to_canvas(image, canvas, GREY)
    assert ours.size == canvas
    if min(fit_inside(image.size, canvas)[0]) > 0:
        assert np.array_equal(np.asarray(ours), np.asarray(ImageOps.pad(image, canvas, color=GREY)))


@pytest.mark.parametrize("size", [(10000, 1), (1, 10000)])
def test_an_image_too_thin_to_see_becomes_plain_padding(size):
    tile = pad_to_canvas(Image.new("RGB", size, "red"), (384, 384), GREY)
    assert tile.getcolors() == [(384 * 384, GREY)]


def test_padding_is_127():
    assert pad_to_canvas(Image.new("RGB", (10, 20)), (384, 384), GREY).getpixel((0, 0)) == GREY


@settings(max_examples=25)
@given(st.integers(1, 700), st.integers(1, 700))
def test_cutting_then_gluing_restores_the_canvas(width, height):
    canvases = [(columns * 48, rows * 48) for columns in range(1, 4) for rows in range(1, 4)]
    canvas = choose_canvas((width, height), canvases)
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    padded = pad_to_canvas(image, canvas, GREY)
    glued = Image.new("RGB", canvas)
    columns = canvas[0] // 48
    for index, tile in enumerate(cut_tiles(padded, 48)):
        glued.paste(tile, (index % columns * 48, index // columns * 48))
    assert glued.tobytes() == padded.tobytes()


def test_no_tile_is_made_twice():
    tiles = draw_views(picture("photo640x480"), tile_canvases(UNTILED, 384), GREY)
    assert len(tiles) == 1
    assert len(draw_views(picture("photo640x480"), tile_canvases((2, 2), 384), GREY)) == 5


def test_no_images_make_an_empty_stack():
    assert pixel_values([], HALF, HALF, 56).shape == (0, 3, 56, 56)
