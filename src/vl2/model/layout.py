"""From the tokens of tiles to the token sequence of images, and from there to their places in the prompt.

An image reads: the global view row by row with a newline after each, a separator, then the local tiles
stitched to one picture, row by row with a newline after each full row. The order depends on the grid
alone, so it is computed once per grid as a table of indices and applied as one gather.

Source: released prepare_inputs_embeds, tile_tag "2D", global view at the head.
Golden: inputs_embeds in tests/golden/reference/model.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vl2.grid import UNTILED, Grid, num_tiles, num_visual_tokens

NEWLINE, SEPARATOR = -1, -2


@lru_cache(maxsize=256)
def image_order(grid: Grid, side: int) -> Tensor:
    """Return for each token of an image its index among the image's tile tokens, NEWLINE or SEPARATOR. int64."""
    columns, rows = grid
    newline = torch.full((1, 1), NEWLINE)
    tile = torch.arange(side * side).view(side, side)
    first_local = 0 if grid == UNTILED else side * side  # the only tile serves as both views
    local = torch.arange(rows * columns * side * side) + first_local
    # [rows, columns, y, x] -> [rows * y, columns * x]: the picture that the tiles were cut from
    stitched = local.view(rows, columns, side, side).permute(0, 2, 1, 3).reshape(rows * side, columns * side)
    order = torch.cat(
        (
            torch.cat((tile, newline.expand(side, 1)), dim=1).flatten(),
            torch.tensor([SEPARATOR]),
            torch.cat((stitched, newline.expand(rows * side, 1)), dim=1).flatten(),
        )
    )
    assert len(order) == num_visual_tokens(grid, side)
    return order


def arrange_tiles(tokens_IQD: Tensor, grids: Sequence[Grid], newline_D: Tensor, separator_D: Tensor) -> Tensor:
    """Return the visual tokens of all images, one after another, [tokens, D].

    Tiles come image by image, global view first; `grids` are (columns, rows).
    """
    num_given, tokens_per_tile = tokens_IQD.shape[:2]
    num_expected = sum(num_tiles(grid) for grid in grids)
    assert num_given == num_expected, f"{num_given} tiles given, grids {list(grids)} need {num_expected}"
    side = round(tokens_per_tile**0.5)
    # The two learned vectors stand behind the tile tokens, where the negative indices find them.
    pool = torch.cat((tokens_IQD.flatten(0, 1), separator_D.unsqueeze(0), newline_D.unsqueeze(0)))
    pieces, first = [], 0
    for grid in grids:
        order = image_order(grid, side)
        pieces.append(torch.where(order >= 0, order + first, order + len(pool)))
        first += num_tiles(grid) * tokens_per_tile
    return pool[torch.cat(pieces).to(pool.device)]


def place_visual(embeds_BSD: Tensor, image_mask_BS: Tensor, visual_TD: Tensor) -> Tensor:
    """Return the embeddings with the visual tokens in the marked slots, in order. The counts must agree."""
    mask = image_mask_BS.unsqueeze(-1).expand_as(embeds_BSD)
    num_slots = int(image_mask_BS.sum())
    assert num_slots == len(visual_TD), f"{num_slots} visual slots in the prompt, {len(visual_TD)} visual features"
    return embeds_BSD.masked_scatter(mask, visual_TD.to(embeds_BSD.dtype))
