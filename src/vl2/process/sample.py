"""One conversation as tensors: what the model reads, what it is trained on, and where the images go.

S tokens, I tiles, P the side of a tile in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vl2.errors import UserError
from vl2.grid import Grid, num_tiles, num_visual_tokens
from vl2.process.tiling import Size

IGNORE_ID = -100  # label of a token that is not trained


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A tokenised conversation; its counts of visual slots and of tiles have been checked against its grids."""

    input_ids: Tensor  # int64 [S]
    labels: Tensor  # int64 [S]; IGNORE_ID where not trained
    image_mask: Tensor  # bool [S]; True where a visual token goes
    tiles: Tensor  # float32 [I, 3, P, P]; image by image, global view first; [0, 3, P, P] without images
    grids: Tensor  # int64 [images, 2]; (columns, rows)
    image_sizes: tuple[Size, ...]  # (width, height) of the images as opened, orientation applied
    tokens_per_side: int  # visual tokens along one side of a tile
    pad_id: int
    name: str = ""  # for messages: a record's id, a file, a request

    def __post_init__(self) -> None:
        length = len(self.input_ids)
        if len(self.labels) != length or len(self.image_mask) != length:
            raise self._error(
                f"labels and image_mask must have the length of input_ids ({length}), "
                f"got {len(self.labels)} and {len(self.image_mask)}"
            )
        grids = self.grid_list
        if len(self.image_sizes) != len(grids):
            raise self._error(f"one size per image is needed ({len(grids)}), got {len(self.image_sizes)}")
        slots = int(self.image_mask.sum())
        expected = sum(num_visual_tokens(grid, self.tokens_per_side) for grid in grids)
        if slots != expected:
            raise self._error(f"{slots} visual slots in the tokens, but its images make {expected} visual tokens")
        tiles = sum(num_tiles(grid) for grid in grids)
        if len(self.tiles) != tiles:
            raise self._error(f"{len(self.tiles)} tiles, but its grids need {tiles}")

    @property
    def grid_list(self) -> list[Grid]:
        """The grids as Python tuples."""
        return [(int(columns), int(rows)) for columns, rows in self.grids.tolist()]

    def __len__(self) -> int:
        return len(self.input_ids)

    def _error(self, what: str) -> UserError:
        return UserError(f"sample {self.name!r}: {what}")
