"""A sprite drawn by another hand is another picture of the same thing."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vl2.synth.emoji import Emoji
from vl2.synth.restyle import restyle
from vl2.synth.source import generate
from vl2.synth.sprites import built_in_kinds, draw_sprite


def sprite(side: int = 96) -> Image.Image:
    """A red disc with a shade that runs, and a blue spot."""
    picture = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for ring in range(side // 2):
        draw.ellipse((ring, ring, side - 1 - ring, side - 1 - ring), (150 + 100 * ring // side, 20, 30, 255))
    draw.ellipse((side // 3, side // 3, side // 2, side // 2), (20, 40, 200, 255))
    return picture


def solid(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.getchannel("A").resize((48, 48))) > 127


def test_the_thing_stays_and_the_manner_changes() -> None:
    before, seen, lines = sprite(), set[bytes](), 0
    for seed in range(60):
        after = restyle(before, random.Random(seed))
        assert after.mode == "RGBA"
        assert max(abs(a - b) for a, b in zip(after.size, before.size, strict=True)) <= 0.15 * 96
        both = solid(after) & solid(before)
        assert both.sum() > 0.85 * solid(before).sum()
        seen.add(after.tobytes())
        pixels = np.asarray(after)
        lines += int(((pixels[..., :3] < 70).all(-1) & (pixels[..., 3] > 200)).sum() > 100)
    assert len(seen) == 60
    assert 15 < lines < 50  # of 60: about half are drawn with dark lines


def test_colors_are_other_shades_of_the_same() -> None:
    """What is neither a line nor white is red, but for the blue spot; now and then there are lines alone."""
    lines_alone = 0
    for seed in range(60):
        pixels = np.asarray(restyle(sprite(), random.Random(seed))).astype(int)
        red, others = pixels[..., 0], pixels[..., 1:3].max(-1)
        is_colored = (pixels[..., 3] > 200) & (np.abs(red - others) > 20)
        lines_alone += not is_colored.any()
        if is_colored.any():
            assert (red > others)[is_colored].mean() > 0.85, seed
    assert 0 < lines_alone < 20


def test_it_depends_on_the_generator_alone() -> None:
    one, two = (restyle(sprite(), random.Random(3)) for _ in range(2))
    assert one.size == two.size
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("side", [8, 16, 33, 150])
def test_sprites_of_any_size_can_be_drawn_so(side: int) -> None:
    for seed, kind in enumerate(built_in_kinds()[::9]):
        after = restyle(draw_sprite(kind, side), random.Random(seed))
        assert min(after.size) >= 1
        assert after.getchannel("A").getbbox() is not None


def test_naming_pictures_takes_them() -> None:
    plain = Emoji(tasks=("name",), languages=("en",))
    drawn = [[record.images[0].data for record in generate(source, 12)]
             for source in (plain, replace(plain, restyled_share=1.0))]  # fmt: skip
    assert all(a != b for a, b in zip(*drawn, strict=True))
