"""The number of tiles and visual tokens of an image, computed from its grid of local tiles.

A grid is (columns, rows). An image is shown as one global view and columns x rows local tiles; a
tile becomes `side` x `side` tokens (14 x 14 for the released sizes). The global view gets a newline
after every row, then a separator, then the whole stitched local grid with a newline after every row.

Source: arXiv 2412.10302, section on dynamic tiling. Golden: tests/golden/reference/processor/resolutions.json.
"""

Grid = tuple[int, int]  # (columns, rows) of local tiles

UNTILED: Grid = (1, 1)


def num_tiles(grid: Grid) -> int:
    """Count the tiles to encode. A 1 x 1 grid's local tile equals its global view, so it is encoded once."""
    columns, rows = grid
    return 1 if grid == UNTILED else 1 + columns * rows


def num_visual_tokens(grid: Grid, side: int) -> int:
    """Count the tokens of one image: global view, separator and local grid, newlines included."""
    columns, rows = grid
    return side * (side + 1) + 1 + rows * side * (columns * side + 1)
