"""What comes back: text, ids, boxes in pixels, usage and the reason to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from vl2.infer.draw import draw_boxes
from vl2.infer.sequence import FinishReason
from vl2.process.grounding import Box, boxes_in_pixels
from vl2.process.page_blocks import PageBlock, parse_blocks, to_markdown

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int  # text and visual
    visual_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. `text` keeps the grounding tags; `boxes` and `blocks` say the same as data."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    image_sizes: tuple[Size, ...]  # of all images of the conversation, upright

    @property
    def boxes(self) -> list[Box]:
        """Boxes in pixels of the conversation's last image, which is the one the model is asked to search."""
        return self.boxes_on(len(self.image_sizes) - 1) if self.image_sizes else []

    def boxes_on(self, image_index: int) -> list[Box]:
        """Boxes in pixels of image `image_index` (0 is the first of the conversation).

        The model's text does not say which image a box belongs to; a caller who knows better says so here.
        """
        return boxes_in_pixels(self.text, self.image_sizes, image_index)

    @property
    def blocks(self) -> list[PageBlock]:
        """The blocks of the pages that a model of the DeepSeek-OCR family has read, with types, boxes and text."""
        return parse_blocks(self.text, self.image_sizes)

    @property
    def markdown(self) -> str:
        """The text of the blocks without tags, an empty line between them."""
        return to_markdown(self.blocks)

    def draw(self, image: Image.Image | str, image_index: int | None = None) -> Image.Image:
        """Return a copy of the image, by default the last one, with the boxes and their labels drawn on it."""
        return draw_boxes(image, self.boxes if image_index is None else self.boxes_on(image_index))

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "text": self.text,
            "boxes": [
                {
                    "label": box.label,
                    "xyxy_px": [round(v, 1) for v in box.xyxy_px],
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
