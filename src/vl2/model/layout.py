"""Arrange the visual tokens of an image's views in one sequence, and insert them into the embedded prompt.

The order depends on the layout and the grid alone (`vl2.grid`), so it is computed once for each as a table of indices
and applied as one gather.

Source: released prepare_inputs_embeds, tile_tag "2D", global view at the head; released DeepSeek-OCR
`_pixel_values_to_embedding`. Goldens: inputs_embeds in tests/golden/reference/model; tests/golden/ocr.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vl2.grid import SEPARATOR, Block, Grid, ImageLayout, OverviewFirst

SEPARATOR_INDEX, NEWLINE_INDEX = -1, -2


@lru_cache(maxsize=256)
def image_order(grid: Grid, layout: ImageLayout) -> Tensor:
    """Return for each token of an image its index among the tokens of the image's views, int64 [tokens].

    The views are counted overview first, then the tiles row by row. A newline has NEWLINE_INDEX, the separator
    SEPARATOR_INDEX.
    """
    order = torch.cat(
        [
            torch.tensor([SEPARATOR_INDEX]) if block is SEPARATOR else _block_order(block)
            for block in layout.blocks(grid)
        ]
    )
    assert len(order) == layout.num_tokens(grid)
    return order


def _block_order(block: Block) -> Tensor:
    (columns, rows), side = block.grid, block.side
    views = torch.arange(block.first, block.first + rows * columns * side * side)
    if not block.is_stitched:
        return views
    # [rows, columns, y, x] -> [rows * y, columns * x]: the picture that the views were cut from
    stitched = views.view(rows, columns, side, side).permute(0, 2, 1, 3).reshape(rows * side, columns * side)
    newline = torch.full((rows * side, 1), NEWLINE_INDEX)
    return torch.cat((stitched, newline), dim=1).flatten()


def arrange_views(
    tokens_TD: Tensor, grids: Sequence[Grid], layout: ImageLayout, newline_D: Tensor | None, separator_D: Tensor
) -> Tensor:
    """Return the visual tokens of all images, one after another, [tokens, D].

    `tokens_TD` holds the tokens of the views, image by image, overview first. Grids are (columns, rows). A layout
    without newlines needs no `newline_D`.
    """
    num_expected = sum(_num_view_tokens(grid, layout) for grid in grids)
    assert len(tokens_TD) == num_expected, (
        f"{len(tokens_TD)} tokens of views given, grids {list(grids)} need {num_expected}"
    )
    # The learned vectors are appended to the views' tokens, so that the negative indices point to them.
    learned = (separator_D,) if newline_D is None else (newline_D, separator_D)
    pool = torch.cat((tokens_TD, *(vector_D.unsqueeze(0) for vector_D in learned)))
    pieces, first = [], 0
    for grid in grids:
        order = image_order(grid, layout)
        pieces.append(torch.where(order >= 0, order + first, order + len(pool)))
        first += _num_view_tokens(grid, layout)
    return pool[torch.cat(pieces).to(pool.device)]


def arrange_tiles(tokens_IQD: Tensor, grids: Sequence[Grid], newline_D: Tensor, separator_D: Tensor) -> Tensor:
    """Return the visual tokens of images of DeepSeek-VL2, [tokens, D]. All their views are in one stack."""
    layout = OverviewFirst.of_side(side_of(tokens_IQD))
    return arrange_views(tokens_IQD.flatten(0, 1), grids, layout, newline_D, separator_D)


def side_of(tokens_IQD: Tensor) -> int:
    """Return the number of tokens along one side of each view of a stack."""
    return math.isqrt(tokens_IQD.shape[1])


def _num_view_tokens(grid: Grid, layout: ImageLayout) -> int:
    return layout.num_overviews(grid) * layout.overview_side**2 + layout.num_tiles(grid) * layout.tile_side**2


def join_views(tiles_IQD: Tensor, overviews_JQD: Tensor, grids: Sequence[Grid], layout: ImageLayout) -> Tensor:
    """Return the tokens of all views image by image, overview first, [tokens, D], from those of both stacks."""
    tiles = tiles_IQD.split([layout.num_tiles(grid) for grid in grids])
    overviews = overviews_JQD.split([layout.num_overviews(grid) for grid in grids])
    both = zip(overviews, tiles, strict=True)
    return torch.cat([part.flatten(0, 1) for pair in both for part in pair])


def place_visual(embeds_BSD: Tensor, image_mask_BS: Tensor, visual_TD: Tensor) -> Tensor:
    """Return the embeddings with the visual tokens in the marked slots, in order. The counts must agree."""
    mask = image_mask_BS.unsqueeze(-1).expand_as(embeds_BSD)
    num_slots = int(image_mask_BS.sum())
    assert num_slots == len(visual_TD), f"{num_slots} visual slots in the prompt, {len(visual_TD)} visual features"
    return embeds_BSD.masked_scatter(mask, visual_TD.to(embeds_BSD.dtype))
