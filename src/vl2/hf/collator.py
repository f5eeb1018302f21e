"""The data collator for transformers' Trainer, and checks of the model inputs that transformers passes.

Shapes: B rows, S tokens in the longest row, I tiles of all rows together, P the side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vl2.batch import Batch
from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.process.processor import Processor
from vl2.process.sample import Sample, collate


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as keyword arguments of `VL2ForCausalLM.forward`, without labels. The mask is int64 as usual."""
    overviews = {} if batch.overviews is None else {"overviews": batch.overviews}
    return {
        **overviews,
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask.long(),
        "image_mask": batch.image_mask,
        "tiles": batch.tiles,
        "grids": batch.grids,
    }


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """The images of a batch, as `forward` gets them."""

    mask: Tensor  # bool [B, S]; True at visual tokens
    tiles: Tensor  # float32 [I, 3, P, P]; row by row, image by image, global view first
    grids: Tensor  # int64 [images, 2], on the CPU; (columns, rows)
    overviews: Tensor | None  # float32 [J, 3, B, B]; views of whole images, of models where they are no tiles

    @classmethod
    def of(
        cls,
        image_mask: Tensor | None,
        tiles: Tensor | None,
        grids: Tensor | None,
        overviews: Tensor | None,
        config: ModelConfig,
    ) -> ImageInputs | None:
        """Return the images of forward's arguments, None for text alone. UserError unless they fit together."""
        layout = config.layout(1, 1)
        made = [] if grids is None else [(int(columns), int(rows)) for columns, rows in grids.tolist()]
        num_given, num_needed = 0 if tiles is None else len(tiles), sum(map(layout.num_tiles, made))
        if num_given != num_needed:
            raise UserError(f"tiles and grids go together: {num_given} tiles, the grids need {num_needed}")
        num_given, num_needed = 0 if overviews is None else len(overviews), sum(map(layout.num_overviews, made))
        if num_given != num_needed:
            raise UserError(f"overviews and grids go together: {num_given} overviews, the grids need {num_needed}")
        if tiles is None or grids is None or not made:
            if image_mask is not None and bool(image_mask.any()):
                raise UserError("image_mask marks visual tokens, but there are no tiles")
            return None
        if image_mask is None:
            raise UserError("tiles need an image_mask that says where their visual tokens go")
        return cls(mask=image_mask.bool(), tiles=tiles, grids=grids.cpu(), overviews=overviews)


def checked_mask(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor:
    """Return the mask as bool [B, S], all True if there is none. Raise UserError for a row with gaps."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    mask_BS = attention_mask.bool()
    if mask_BS.shape != input_ids.shape:
        raise UserError(f"attention_mask must be {list(input_ids.shape)}, got {list(mask_BS.shape)}")
    num_runs_B = mask_BS[:, 0].long() + (mask_BS[:, 1:] & ~mask_BS[:, :-1]).sum(dim=1)
    if bool((num_runs_B > 1).any()):
        raise UserError("attention_mask must be one run of ones per row, with padding before or after the tokens only")
    return mask_BS


class VL2DataCollator:
    """A `data_collator` for Trainer: it makes one right-padded batch with labels from samples or from messages."""

    def __init__(self, processor: Processor | None = None, *, mask_prompt: bool = True) -> None:
        """Make a collator. `processor` is needed for messages only; `mask_prompt` computes the loss on answers only."""
        self.processor = processor
        self.mask_prompt = mask_prompt

    def __call__(self, features: Sequence[Sample | Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = collate([self._sample(feature) for feature in features], pad="right")
        return {**model_inputs(batch), "labels": batch.labels}

    def _sample(self, feature: Sample | Mapping[str, Any]) -> Sample:
        if isinstance(feature, Sample):
            return feature
        if "messages" not in feature:
            raise UserError(
                f"a training example needs messages, got {', '.join(map(str, feature)) or 'nothing'} "
                "(Trainer drops unknown columns: set remove_unused_columns=False)"
            )
        if self.processor is None:
            raise UserError("messages need a processor: VL2DataCollator(processor.core)")
        name = str(feature.get("id", ""))
        return self.processor.encode(feature["messages"], train=True, mask_prompt=self.mask_prompt, name=name)
