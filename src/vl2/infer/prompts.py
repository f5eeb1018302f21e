"""The prompts that the released model was trained to answer."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from vl2.errors import UserError
from vl2.model_kind import ModelKind
from vl2.process.image import ImageOptions, ImageSource, open_image


def locate_prompt(query: str, kind: ModelKind = "DeepSeek-VL2") -> str:
    """Return the prompt that asks for the boxes of what `query` describes. Raise UserError if the query is empty."""
    if not query.strip():
        raise UserError("the query is empty: say what to locate")
    asked = f"<|ref|>{query.strip()}<|/ref|>"
    return f"{asked}." if kind == "DeepSeek-VL2" else f"Locate {asked} in the image."


def locate_like_prompt(kind: ModelKind = "DeepSeek-VL2") -> str:
    """Return the prompt that asks for objects in the second image like the one that `mark_object` marked in the first.

    Raise UserError for a model that was not trained for this task.
    """
    if kind != "DeepSeek-VL2":
        raise UserError(f"{kind} does not locate objects like a marked one: that is for DeepSeek-VL2")
    return (
        "<|grounding|>In the first image, an object within the red rectangle is marked. Locate the object of the "
        "same category in the second image."
    )


def mark_object(image: ImageSource, box_px: Sequence[float], options: ImageOptions | None = None) -> Image.Image:
    """Return an RGB copy with a red rectangle around a box, given as x0, y0, x1, y1 in pixels.

    Raise UserError if the box is not four numbers or lies outside the image.
    """
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


def read_prompt(kind: ModelKind = "DeepSeek-VL2") -> str:
    """Return the prompt that asks for the text of a page.

    The DeepSeek-OCR family is asked for Markdown with a box for each block.
    """
    if kind == "Unlimited-OCR":
        return "document parsing."
    return "Transcribe the whole page." if kind == "DeepSeek-VL2" else "<|grounding|>Convert the document to markdown."


def describe_prompt(*, grounded: bool, kind: ModelKind = "DeepSeek-VL2") -> str:
    """Return the prompt that asks for a description; `grounded` asks for a box after everything named."""
    if kind != "DeepSeek-VL2":
        return ("<|grounding|>" if grounded else "") + "Describe this image in detail."
    return ("<|grounding|>" if grounded else "") + "Can you describe this image in detail?"
