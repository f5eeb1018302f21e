"""Cut the pictures of a page out of its image, where the blocks of an answer say that they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from vl2.process.page_blocks import PageBlock


def cut_figures(blocks: Sequence[PageBlock], pages: Sequence[Image.Image]) -> dict[int, list[Image.Image]]:
    """Return, by the index of each block that is a picture, what its boxes show of its page's upright image.

    A box is widened to whole pixels. Boxes without area are left out, and so are blocks without other boxes.
    """
    figures = {}
    for index, block in enumerate(blocks):
        if block.is_picture and pages:
            page = pages[min(block.page, len(pages) - 1)]
            found = [page.crop(corners) for box in block.boxes_px if (corners := whole_pixels(box, page.size))]
            if found:
                figures[index] = found
    return figures


def whole_pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the corners of the pixels that a box touches, or None for a box without area."""
    x0, y0, x1, y1 = (round(value, 3) for value in box)  # 500.00000000000006 is 500
    if not (x0 < x1 and y0 < y1):
        return None
    return math.floor(x0), math.floor(y0), min(size[0], math.ceil(x1)), min(size[1], math.ceil(y1))
