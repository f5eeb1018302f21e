from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vl2.errors import UserError
from vl2.grid import num_tiles, num_visual_tokens
from vl2.process.image import ImageOptions
from vl2.process.processor import Processor
from vl2.process.tiling import Tiling
from vl2.process.tokenizer import TextTooLong

from .golden import REFERENCE

SIZES = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), max_size=4)


def ask(*sizes: tuple[int, int]) -> list[dict[str, object]]:
    images = [{"type": "image", "image": Image.new("RGB", size, "teal")} for size in sizes]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "What is this?"}]}]


@settings(max_examples=40)
@given(SIZES, st.sampled_from(["paper", "per-image", "budget:200"]))
def test_slots_are_the_visual_tokens_of_the_grids(toy, sizes, tiling):
    sample = toy.with_tiling(tiling).encode(ask(*sizes))
    assert int(sample.image_mask.sum()) == sum(num_visual_tokens(grid, 2) for grid in sample.grid_list)
    assert len(sample.tiles) == sum(map(num_tiles, sample.grid_list))
    assert sample.image_sizes == tuple(sizes)
    assert torch.equal(sample.image_mask, sample.input_ids == toy.tokenizer.image_id)


def test_tiling_is_off_from_the_third_image_on_only_for_paper(toy):
    three = ask((100, 100), (100, 100), (100, 100))
    assert set(toy.encode(three).grid_list) == {(1, 1)}
    assert set(toy.with_tiling("per-image").encode(three).grid_list) == {(2, 2)}
    assert len(toy.encode(three).tiles) == 3


def test_more_tiles_can_be_allowed(toy):
    wide = ask((56 * 18, 56))
    assert toy.encode(wide).grid_list == [(9, 1)]
    assert toy.with_tiling(Tiling(), max_tiles=18).encode(wide).grid_list == [(18, 1)]
    with pytest.raises(UserError, match="max_tiles"):
        toy.with_tiling("paper", max_tiles=0)


def test_an_image_scale_chooses_the_grid_of_a_larger_image_and_resizes_once(toy):
    small, large = ask((56, 40)), ask((112, 80))
    assert toy.encode(small).grid_list == [(1, 1)]
    doubled = replace(toy, config=replace(toy.config, image_scale=2.0))
    sample = doubled.encode(small)
    assert sample.grid_list == toy.encode(large).grid_list == [(2, 2)]
    assert sample.image_sizes == ((56, 40),)
    assert doubled.encode(ask((1, 1))).grid_list == [(1, 1)]
    halved = replace(toy, config=replace(toy.config, image_scale=0.1))
    assert halved.encode(ask((1, 3))).grid_list == [(1, 1)], "no side is below one pixel"


def test_text_alone_has_an_empty_stack(toy):
    sample = toy.encode([{"role": "user", "content": "hi"}])
    assert sample.tiles.shape == (0, 3, 56, 56)
    assert sample.grids.shape == (0, 2)
    assert sample.grids.dtype == sample.input_ids.dtype == sample.labels.dtype == torch.int64
    assert sample.image_sizes == ()


def test_each_image_is_opened_once(toy, monkeypatch):
    class Counted(io.BytesIO):
        reads = 0

        def read(self, *args: int) -> bytes:
            Counted.reads += 1
            return super().read(*args)

    source = Counted((REFERENCE / "images" / "photo640x480.png").read_bytes())
    toy.encode([{"role": "user", "content": [{"type": "image", "image": source}]}])
    assert Counted.reads == 1


def test_sizes_are_those_after_turning_upright(toy):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    message = [{"role": "user", "content": [{"type": "image", "image": buffer.getvalue()}]}]
    assert toy.encode(message).image_sizes == ((30, 20),)  # the released options do not turn
    assert toy.with_image_options(ImageOptions()).encode(message).image_sizes == ((20, 30),)


def test_a_bad_image_names_itself_and_a_missing_folder_too(toy, tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: there is no such file"):
        toy.encode([{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "gone.png")}]}])
    with pytest.raises(UserError, match=r"no processor_config\.json"):
        Processor.from_folder(tmp_path)


def test_text_that_cannot_fit_is_refused_before_images_are_opened(toy):
    bounded = replace(toy, max_tokens=100)
    long = "x" * 100_000
    conversations = (
        [{"role": "user", "content": [{"type": "image", "image": "no-such.png"}, {"type": "text", "text": long}]}],
        [{"role": "system", "content": long}, {"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "x" * 1000}] * 50,
    )
    for messages in conversations:
        with pytest.raises(TextTooLong, match=r"the text has 10000\d characters"):
            bounded.encode(messages)
    with pytest.raises(TextTooLong, match=r"the text has 10000\d characters"):
        bounded.encode_prompt(f"<image>{long}", ["no-such.png"])
    assert len(bounded.encode([{"role": "user", "content": " " * 100_000 + "Hello"}])) < 100
    assert len(toy.encode([{"role": "user", "content": long}])) > 100


def test_the_name_of_a_sample_is_kept(toy):
    assert toy.encode(ask((9, 9)), name="sroie-3").name == "sroie-3"
