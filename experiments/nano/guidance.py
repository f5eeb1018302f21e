"""The auxiliary loss of the training: attention is taught where answers stand, and visual tokens where they are.

    [auxiliary_loss]
    function = "experiments.nano.guidance:Guidance"

The four decoder layers before the last one are taught to attend, and the first two of these to know positions.
"""

from __future__ import annotations

from torch import Tensor

from experiments.nano.attention_loss import AttentionLoss
from experiments.nano.evidence import Evidence
from experiments.nano.position_loss import PositionLoss
from vl2.data.pack import Packed
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.model import VL2
from vl2.process.processor import Processor
from vl2.process.sample import Sample

NUM_LAYERS, NUM_PLACED = 4, 2


class Guidance:
    """A mean over the tokens with evidence: of the attention loss of each and the position loss of its pack."""

    def __init__(self, model: VL2, processor: Processor) -> None:
        """UserError if the model has too few layers, or nothing of the language model is trained."""
        last = len(model.language.model.layers) - 1
        if last < NUM_LAYERS:
            raise UserError(f"guidance needs a model of more than {NUM_LAYERS} decoder layers, got {last + 1}")
        layers = range(last - NUM_LAYERS, last)
        self._attention = AttentionLoss(model, processor, layers)
        self._position = PositionLoss(model, layers[:NUM_PLACED])

    def note(self, record: Record, sample: Sample) -> Evidence:
        """Say where in its images or its text the answers of a sample stand."""
        return self._attention.note(record, sample)

    def count(self, pack: Packed) -> int:
        """Return the number of tokens with evidence."""
        return self._attention.count(pack)

    def take(self, pack: Packed) -> Tensor:
        """Return the sum of the losses of the pack that was run last, and forget what was seen."""
        return self._attention.take(pack) + self._position.take(pack) * self.count(pack)
