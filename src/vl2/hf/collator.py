"""From the examples of a data set to the batches that Trainer passes to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vl2.errors import UserError
from vl2.hf.inputs import model_inputs
from vl2.process.collate import collate
from vl2.process.processor import Processor
from vl2.process.sample import Sample


class VL2DataCollator:
    """The `data_collator` of a Trainer: samples, or mappings with messages, to one right-padded batch with labels."""

    def __init__(self, processor: Processor | None = None, *, mask_prompt: bool = True) -> None:
        """`processor` is needed for messages only; `mask_prompt` trains on the answers alone."""
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
