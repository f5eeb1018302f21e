"""One conversation as tensors (`Sample`), and several as a padded batch (`collate`), with labels for training.

S is the number of tokens, I of tiles, and P the side of a tile in pixels. Golden: `batches` in
tests/golden/reference/processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vl2.batch import Batch
from vl2.errors import UserError
from vl2.grid import Grid, ImageLayout
from vl2.process.tiling import Size

IGNORE_ID = -100  # label of a token that is not trained


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A tokenized conversation. Raise UserError if its visual slots, tiles or overviews do not match its grids."""

    input_ids: Tensor  # int64 [S]
    labels: Tensor  # int64 [S]; IGNORE_ID for tokens that are not trained
    image_mask: Tensor  # bool [S]; True in the slots of visual tokens
    tiles: Tensor  # float32 [I, 3, P, P]; image by image, row by row; [0, 3, P, P] without images
    grids: Tensor  # int64 [images, 2]; (columns, rows)
    image_sizes: tuple[Size, ...]  # (width, height) of the images after opening, with their orientation applied
    layout: ImageLayout  # which views an image has, and the order of their tokens
    pad_id: int
    overviews: Tensor | None = None  # float32 [J, 3, B, B]; overviews that are not tiles
    answers: tuple[tuple[int, int], ...] = ()  # (start, stop) of each answer that ends with eos, in order
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
        expected = sum(self.layout.num_tokens(grid) for grid in grids)
        if slots != expected:
            raise self._error(f"{slots} visual slots in the tokens, but its images make {expected} visual tokens")
        tiles = sum(self.layout.num_tiles(grid) for grid in grids)
        if len(self.tiles) != tiles:
            raise self._error(f"{len(self.tiles)} tiles, but its grids need {tiles}")
        overviews = sum(self.layout.num_overviews(grid) for grid in grids)
        if self.num_overviews != overviews:
            raise self._error(f"{self.num_overviews} overviews, but its grids need {overviews}")

    @property
    def num_overviews(self) -> int:
        return 0 if self.overviews is None else len(self.overviews)

    @property
    def num_views(self) -> int:
        """The number of views that the encoder reads: tiles, and overviews that are not tiles."""
        return len(self.tiles) + self.num_overviews

    @property
    def prompt_length(self) -> int:
        """The number of tokens before the answer that ends the sample; all tokens if it does not end with one."""
        start, stop = self.answers[-1] if self.answers else (0, 0)
        return start if stop == len(self) else len(self)

    @property
    def grid_list(self) -> list[Grid]:
        """The grids as Python tuples."""
        return [(int(columns), int(rows)) for columns, rows in self.grids.tolist()]

    def __len__(self) -> int:
        return len(self.input_ids)

    def _error(self, what: str) -> UserError:
        return UserError(f"sample {self.name!r}: {what}")


Side = Literal["left", "right"]


def collate(samples: Sequence[Sample], pad: Side = "left", pad_id: int | None = None) -> Batch:
    """Pad the samples to the longest one and stack them. `pad_id` defaults to that of the samples.

    Pad left for generating and right for training. The model's answers do not depend on the side. Raise UserError if
    there are no samples, or if they differ in the size of their views or, without `pad_id`, in their pad id.
    """
    if not samples:
        raise UserError("a batch needs at least one sample, got none")
    if pad not in ("left", "right"):
        raise UserError(f"pad must be left or right, got {pad!r}")
    if pad_id is None:
        pad_id = _the_one("pad_id", [sample.pad_id for sample in samples])
    _the_one("tokens along a tile", [sample.layout.tile_side for sample in samples])
    _the_one("tokens along an overview", [sample.layout.overview_side for sample in samples])
    _the_one("tile side in pixels", [sample.tiles.shape[-1] for sample in samples])
    overviews = [sample.overviews for sample in samples if sample.overviews is not None]
    return Batch(
        input_ids=_pad_rows([sample.input_ids for sample in samples], pad, pad_id),
        labels=_pad_rows([sample.labels for sample in samples], pad, IGNORE_ID),
        attention_mask=_pad_rows([torch.ones_like(sample.image_mask) for sample in samples], pad, False),
        image_mask=_pad_rows([sample.image_mask for sample in samples], pad, False),
        tiles=torch.cat([sample.tiles for sample in samples]),
        overviews=torch.cat(overviews) if overviews else None,
        grids=torch.cat([sample.grids for sample in samples]),
    )


def _the_one(what: str, values: Sequence[int]) -> int:
    if len(set(values)) > 1:
        raise UserError(f"samples of one batch must share their {what}, got {sorted(set(values))}")
    return values[0]


def _pad_rows(rows: Sequence[Tensor], pad: Side, value: int | bool) -> Tensor:
    width = max(len(row) for row in rows)
    out = rows[0].new_full((len(rows), width), value)
    for target, row in zip(out, rows, strict=True):
        if pad == "left":
            target[width - len(row) :] = row
        else:
            target[: len(row)] = row
    return out
