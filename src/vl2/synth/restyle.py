"""Redraw a sprite in another style: few flat colors, dark outlines, changed shades, a slight rotation.

The shapes and the approximate colors identify what a sprite shows, whereas the drawing style belongs to its sprite set.
A model that is trained on only three sets confuses style and content; restyling adds more styles.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

WHITE = (255, 255, 255)
MOST_HUE = 8  # greatest change of hue in either direction, of 256; a red heart stays red
NOTHING = 255  # label of transparent pixels


def restyle(sprite: Image.Image, rng: random.Random) -> Image.Image:
    """Return an RGBA image of the same thing in another style, at about the same size."""
    alpha = sprite.getchannel("A")
    colors = Image.new("RGB", sprite.size, WHITE)
    colors.paste(sprite, mask=alpha)
    if rng.random() < 0.8:
        colors = _in_other_shades(colors, rng)
    if rng.random() < 0.7:
        # The median filter comes first, because quantization would turn color gradients into stripes.
        flat = colors.filter(ImageFilter.MedianFilter(5)).quantize(rng.randint(3, 9), dither=Image.Dither.NONE)
        colors = flat.convert("RGB")
        if rng.random() < 0.75:
            labels = np.where(np.asarray(alpha) > 127, np.asarray(flat), NOTHING).astype(np.uint8)
            colors, alpha = _with_lines(colors, alpha, labels, rng)
    drawn = colors.convert("RGBA")
    drawn.putalpha(alpha)
    return _leaning(drawn, rng) if rng.random() < 0.6 else drawn


def _in_other_shades(colors: Image.Image, rng: random.Random) -> Image.Image:
    hue, saturation, value = colors.convert("HSV").split()
    turn = rng.randint(-MOST_HUE, MOST_HUE)
    turned = Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value)).convert("RGB")
    for change, low, high in (
        (ImageEnhance.Color, 0.5, 1.5),
        (ImageEnhance.Brightness, 0.75, 1.2),
        (ImageEnhance.Contrast, 0.75, 1.3),
    ):
        turned = change(turned).enhance(rng.uniform(low, high))
    return turned


def _with_lines(
    colors: Image.Image, alpha: Image.Image, labels: np.ndarray, rng: random.Random
) -> tuple[Image.Image, Image.Image]:
    """Draw dark lines between the colors and around the sprite. In 15 % of cases the colors are replaced by white.

    `labels` [height, width] has the index of each pixel's color, or NOTHING. Return the colors and the alpha channel.
    """
    meets = np.zeros(labels.shape, dtype=bool)
    meets[:-1] |= labels[:-1] != labels[1:]
    meets[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    for edge, line in ((labels[0], meets[0]), (labels[-1], meets[-1]), (labels[:, 0], meets[:, 0]),
                       (labels[:, -1], meets[:, -1])):  # fmt: skip
        line |= edge != NOTHING
    lines = Image.fromarray(meets.astype(np.uint8) * 255)
    if max(colors.size) > 40:
        lines = lines.filter(ImageFilter.MaxFilter(rng.choice((3, 3, 5) if max(colors.size) > 90 else (3,))))
    lines = lines.filter(ImageFilter.GaussianBlur(0.6))
    drawn = Image.new("RGB", colors.size, WHITE) if rng.random() < 0.15 else colors.copy()
    shade = rng.randint(0, 60)
    drawn.paste((shade, shade, shade), mask=lines)
    return drawn, Image.fromarray(np.maximum(np.asarray(alpha), np.asarray(lines)))


def _leaning(drawn: Image.Image, rng: random.Random) -> Image.Image:
    """Rotate an image by up to 12 degrees, and shrink each side by up to 14 %."""
    turned = drawn.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
    box = turned.getchannel("A").getbbox()
    turned = turned.crop(box) if box is not None else turned
    longest = max(drawn.size)
    scale = longest / max(turned.size)
    size = [max(1, round(length * scale * rng.uniform(0.86, 1))) for length in turned.size]
    return turned.resize((size[0], size[1]), Image.Resampling.BILINEAR)
