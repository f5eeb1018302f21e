"""Samples of unequal length to one padded batch. Golden: `batches` in tests/golden/reference/processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vl2.batch import Batch
from vl2.errors import UserError
from vl2.process.sample import IGNORE_ID, Sample

Side = Literal["left", "right"]


def collate(samples: Sequence[Sample], pad: Side = "left", pad_id: int | None = None) -> Batch:
    """Pad the samples to the longest one. `pad_id` defaults to the samples' own.

    Left is for generating, right for training; the model answers the same either way.
    """
    if not samples:
        raise UserError("a batch needs at least one sample, got none")
    if pad not in ("left", "right"):
        raise UserError(f"pad must be left or right, got {pad!r}")
    if pad_id is None:
        pad_id = _the_one("pad_id", [sample.pad_id for sample in samples])
    _the_one("tokens_per_side", [sample.tokens_per_side for sample in samples])
    _the_one("tile side in pixels", [sample.tiles.shape[-1] for sample in samples])
    return Batch(
        input_ids=_pad_rows([sample.input_ids for sample in samples], pad, pad_id),
        labels=_pad_rows([sample.labels for sample in samples], pad, IGNORE_ID),
        attention_mask=_pad_rows([torch.ones_like(sample.image_mask) for sample in samples], pad, False),
        image_mask=_pad_rows([sample.image_mask for sample in samples], pad, False),
        tiles=torch.cat([sample.tiles for sample in samples]),
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
