"""The prompts that the released model was trained to answer."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from vl2.errors import UserError
from vl2.process.image import ImageOptions, ImageSource, open_image


def locate_prompt(query: str) -> str:
    """Ask for the boxes of what `query` describes."""
    if not query.strip():
        raise UserError("the query is empty: say what to locate")
    return f"<|ref|>{query.strip()}<|/ref|>."


def locate_like_prompt() -> str:
    """Ask for the boxes, in the second image, of what `mark_object` marked in the first."""
    return (
        "<|grounding|>In the first image, an object within the red rectangle is marked. Locate the object of the "
        "same category in the second image."
    )


def mark_object(image: ImageSource, box_px: Sequence[float], options: ImageOptions | None = None) -> Image.Image:
    """Return an RGB copy with a red rectangle around a box in pixels. UserError for a box outside the image."""
    marked = open_image(image, options or ImageOptions())
    if len(box_px) != 4:
        raise UserError(f"a box must be four numbers x0, y0, x1, y1 in pixels, got {len(box_px)}")
    x0, y0, x1, y1 = box_px
    width, height = marked.size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(
            f"a box must lie in the {width} x {height} image with x0 < x1 and y0 < y1, "
            f"got {', '.join(f'{v:g}' for v in box_px)}"
        )
    line = max(2, round(min(marked.size) / 90))
    around = (max(0, x0 - line), max(0, y0 - line), min(width - 1, x1 + line), min(height - 1, y1 + line))
    ImageDraw.Draw(marked).rectangle(around, outline="red", width=line)
    return marked


def read_prompt() -> str:
    """Ask for the text of a page."""
    return "Transcribe the whole page."


def describe_prompt(*, grounded: bool) -> str:
    """Ask for a description; grounded, with a box behind everything named."""
    return ("<|grounding|>" if grounded else "") + "Can you describe this image in detail?"
