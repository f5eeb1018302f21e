"""What a rank runs where it has nothing of its own but must take part: a sequence of padding that trains nothing."""

from __future__ import annotations

import torch

from vl2.config import ModelConfig
from vl2.data.packed import Packed
from vl2.process.sample import IGNORE_ID

_LENGTH = 8  # tokens; any number does, no rank needs the shapes of another


def blank_pack(config: ModelConfig) -> Packed:
    """Return a pack without samples: no token of it is trained, counted, or seen by the balance of the experts."""
    tile_px = config.vision_config.image_size
    return Packed(
        input_ids=torch.zeros(_LENGTH, dtype=torch.int64),
        labels=torch.full((_LENGTH,), IGNORE_ID),
        position_ids=torch.arange(_LENGTH),
        cu_seqlens=torch.tensor([0, _LENGTH], dtype=torch.int32),
        image_mask=torch.zeros(_LENGTH, dtype=torch.bool),
        tiles=torch.zeros(0, 3, tile_px, tile_px),
        grids=torch.zeros(0, 2, dtype=torch.int64),
        tokens_per_side=config.tokens_per_side,
        num_tokens=0,
        max_seqlen=_LENGTH,
        names=(),
    )
