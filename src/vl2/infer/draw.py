"""Boxes drawn on a copy of an image, one color per label."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vl2.process.grounding import Box
from vl2.process.image import ImageOptions, open_image

# Eight hues that stay apart for most color-blind people (Okabe and Ito, 2008), black last.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def draw_boxes(image: Image.Image | str, boxes: Sequence[Box]) -> Image.Image:
    """Return an RGB copy with each box framed and named. Line and text grow with the image."""
    canvas = open_image(image, ImageOptions()).copy()
    pen = ImageDraw.Draw(canvas)
    unit = max(2, round(min(canvas.size) / 200))
    font = ImageFont.load_default(size=max(12, 6 * unit))
    labels = list(dict.fromkeys(box.label for box in boxes))
    for box in boxes:
        color = COLORS[labels.index(box.label) % len(COLORS)]
        x0, y0, x1, y1 = box.xyxy_px
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=unit)
        if box.label:
            _draw_label(pen, box.label, (x0, y0), color, font, canvas.size)
    return canvas


def _draw_label(
    pen: ImageDraw.ImageDraw,
    label: str,
    corner: tuple[float, float],
    color: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
    width, height, margin = right - left, bottom - top, 3
    # Above the box where there is room, inside it otherwise; never past the right edge.
    x = max(0, min(corner[0], size[0] - width - 2 * margin))
    y = corner[1] - height - 2 * margin if corner[1] >= height + 2 * margin else corner[1]
    pen.rectangle((x, y, x + width + 2 * margin, y + height + 2 * margin), fill=color)
    ink = "black" if color in ("#E69F00", "#56B4E9", "#F0E442") else "white"
    pen.text((x + margin - left, y + margin - top), label, fill=ink, font=font)
