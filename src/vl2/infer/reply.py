"""The answer to a request: its text, ids, boxes in pixels, usage and finish reason, and a drawing of its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vl2.infer.sequence import FinishReason
from vl2.model_kind import ModelKind
from vl2.process.grounding import Box, boxes_in_pixels
from vl2.process.image import ImageOptions, open_image
from vl2.process.page_blocks import PAGE, PageBlock, parse_blocks, to_markdown

# Eight colors that most color-blind people can distinguish (Okabe and Ito, 2008), black last.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def draw_boxes(image: Image.Image | str, boxes: Sequence[Box]) -> Image.Image:
    """Return an RGB copy with a frame and a label for each box. Line width and text size grow with the image."""
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
    # Place the label above the box if there is room, otherwise inside it, and never past the right edge.
    x = max(0, min(corner[0], size[0] - width - 2 * margin))
    y = corner[1] - height - 2 * margin if corner[1] >= height + 2 * margin else corner[1]
    pen.rectangle((x, y, x + width + 2 * margin, y + height + 2 * margin), fill=color)
    ink = "black" if color in ("#E69F00", "#56B4E9", "#F0E442") else "white"
    pen.text((x + margin - left, y + margin - top), label, fill=ink, font=font)


Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Numbers of tokens of one request."""

    prompt_tokens: int  # text and visual
    visual_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. `text` keeps the grounding tags; `boxes` and `blocks` give their content as data."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    image_sizes: tuple[Size, ...]  # of all images of the conversation, after rotation to upright
    kind: ModelKind = "DeepSeek-VL2"  # the model that answered
    token_probabilities: tuple[float, ...] = ()  # of the token ids, if the request asked for them
    token_ends: tuple[int, ...] = ()  # where the text of each of these tokens ends in `text`

    @property
    def boxes(self) -> list[Box]:
        """Boxes in pixels of the conversation's last image, which is the one the model is asked to search.

        An answer of the DeepSeek-OCR family about several pages has the boxes of each.
        """
        if self.kind != "DeepSeek-VL2":
            return self._boxes_of_blocks()
        return self.boxes_on(len(self.image_sizes) - 1) if self.image_sizes else []

    def boxes_on(self, image_index: int) -> list[Box]:
        """Boxes in pixels of image `image_index` (0 is the first of the conversation).

        The model's text does not say which image a box belongs to, so the caller has to name the image.
        """
        if self.kind != "DeepSeek-VL2":
            return [box for box in self._boxes_of_blocks() if box.image_index == image_index]
        return boxes_in_pixels(self.text, self.image_sizes, image_index)

    def _boxes_of_blocks(self) -> list[Box]:
        first, last = len(self.image_sizes) - self.num_pages, len(self.image_sizes) - 1
        return [
            Box(label=block.type, xyxy_999=box, xyxy_px=in_pixels, image_index=min(last, max(0, first) + block.page))
            for block in self.blocks
            for box, in_pixels in zip(block.boxes_999, block.boxes_px, strict=False)
        ]

    @property
    def num_pages(self) -> int:
        """The number of pages that the answer is about. They are the last images of the conversation."""
        return max(1, self.text.count(PAGE))

    @property
    def blocks(self) -> list[PageBlock]:
        """The blocks, with types, boxes and text, of the pages that a model of the DeepSeek-OCR family transcribed."""
        return parse_blocks(self.text, self.image_sizes[-self.num_pages :])

    def confidence(self, span: tuple[int, int]) -> float | None:
        """Return the mean probability of the tokens whose text overlaps a part of `text`; None if there are none."""
        start, end = span
        starts = (0, *self.token_ends)
        found = [
            probability
            for begin, stop, probability in zip(starts, self.token_ends, self.token_probabilities, strict=False)
            if begin < end and stop > start
        ]
        return sum(found) / len(found) if found else None

    @property
    def markdown(self) -> str:
        """The text of the blocks without tags, separated by empty lines."""
        return to_markdown(self.blocks)

    def draw(self, image: Image.Image | str, image_index: int | None = None) -> Image.Image:
        """Return a copy of the image, by default the last one, with the boxes and their labels drawn on it."""
        return draw_boxes(image, self.boxes_on(len(self.image_sizes) - 1 if image_index is None else image_index))

    def page_fields(self) -> dict[str, Any]:
        """Return the Markdown and the blocks of an answer of the DeepSeek-OCR family as JSON values; else nothing."""
        if self.kind == "DeepSeek-VL2":
            return {}
        return {"markdown": self.markdown, "blocks": [block.to_dict() for block in self.blocks]}

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as the JSON object that `--json` prints."""
        return {
            "text": self.text,
            **self.page_fields(),
            "boxes": [
                {
                    "label": box.label,
                    "xyxy_px": [round(v, 1) for v in box.xyxy_px],
                    "center_px": [round(v, 1) for v in box.center_px],
                    "xyxy_999": list(box.xyxy_999),
                    "image_index": box.image_index,
                }
                for box in self.boxes
            ],
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "visual_tokens": self.usage.visual_tokens,
                "completion_tokens": self.usage.completion_tokens,
            },
        }
