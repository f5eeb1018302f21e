"""The model's input tensors: a padded batch (`Batch`) or one packed sequence of documents (`PackedTensors`).

Shapes: B rows, S tokens in the longest row, I tiles of all rows together, P the side of a tile in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of rows padded to one length, on the left or on the right, with the tiles of all rows in one stack."""

    input_ids: Tensor  # int64 [B, S]; the pad id at padding
    labels: Tensor  # int64 [B, S]; IGNORE_ID of vl2.process.sample at positions without loss
    attention_mask: Tensor  # bool [B, S]; False at padding
    image_mask: Tensor  # bool [B, S]; True at visual tokens
    tiles: Tensor  # float32 [I, 3, P, P]; row by row, image by image, global view first
    grids: Tensor  # int64 [images, 2], on the CPU; (columns, rows), row by row
    overviews: Tensor | None = None  # float32 [J, 3, B, B]; views of whole images that are no tiles, image by image
    is_left_padded: bool = field(init=False)  # computed once here, so that the forward pass needs no host sync

    def __post_init__(self) -> None:
        num_edges = (self.attention_mask[:, 1:] != self.attention_mask[:, :-1]).sum(dim=1)
        assert not num_edges.numel() or int(num_edges.max()) <= 1, "a row may be padded on one side only"
        object.__setattr__(self, "is_left_padded", not bool(self.attention_mask[:, 0].all()))

    def to(self, device: torch.device | str) -> Batch:
        """Copy the tensors to `device`. `grids` stays on the CPU, where the image layout is computed."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            attention_mask=self.attention_mask.to(device),
            image_mask=self.image_mask.to(device),
            tiles=self.tiles.to(device),
            overviews=None if self.overviews is None else self.overviews.to(device),
        )


class PackedTensors(Protocol):
    """Several documents in one sequence, where attention stays within each document. Made by `vl2.data.pack`."""

    @property
    def input_ids(self) -> Tensor: ...  # int64 [S]

    @property
    def position_ids(self) -> Tensor: ...  # int64 [S]; 0, 1, ... within each document

    @property
    def cu_seqlens(self) -> Tensor: ...  # int32 [n + 1], document borders from 0 to S; padding is the last document

    @property
    def image_mask(self) -> Tensor: ...  # bool [S]

    @property
    def tiles(self) -> Tensor: ...  # float32 [I, 3, P, P]

    @property
    def grids(self) -> Tensor: ...  # int64 [images, 2], on the CPU

    @property
    def overviews(self) -> Tensor | None: ...  # float32 [J, 3, B, B]; views of whole images that are no tiles

    @property
    def num_tokens(self) -> int: ...  # without padding

    @property
    def max_seqlen(self) -> int: ...  # tokens of the longest document

    @property
    def prompt_lengths(self) -> tuple[int, ...]: ...  # tokens before the last answer of each document; () if unknown
