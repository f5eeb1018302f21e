"""A loss beside that of the next token, from outside the package: a recipe names the function that makes it.

    [auxiliary_loss]
    function = "my_package.my_module:make_loss"
    weight = 0.5

The function gets the model, as it is placed on this rank and with what is frozen, and the processor, and returns an
`AuxiliaryLoss`. A recipe that names one runs that code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from vl2.data.packed import Packed
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.import_path import import_named
from vl2.model import VL2
from vl2.process.processor import Processor
from vl2.process.sample import Sample

if TYPE_CHECKING:
    from vl2.train.recipe import AuxiliaryLossOptions


class AuxiliaryLoss(Protocol):
    """What a step asks of it. The loss of a step is the mean over the terms of all packs on all ranks."""

    def note(self, record: Record, sample: Sample) -> Any:
        """Return what `Packed.notes` shall hold of a sample for this loss. The loader's threads call it."""

    def count(self, pack: Packed) -> int:
        """Return how many terms a pack has."""

    def take(self, pack: Packed) -> Tensor:
        """Return the sum of the terms of the pack that was run forward last, as a scalar with its gradient."""


def check_auxiliary_loss(options: AuxiliaryLossOptions) -> None:
    """UserError if the loss that a recipe names cannot be imported: before anything is downloaded or counted."""
    if options.function:
        import_named(options.function, "auxiliary_loss.function")


def open_auxiliary_loss(options: AuxiliaryLossOptions, model: nn.Module, processor: Processor) -> AuxiliaryLoss | None:
    """Return the loss that a recipe names; None if it names none."""
    if not options.function:
        return None
    make = import_named(options.function, "auxiliary_loss.function")
    if not isinstance(model, VL2):
        raise UserError('an auxiliary loss needs whole models: engine.parallel = "replicated", no pipeline')
    loss: AuxiliaryLoss = make(model, processor)
    return loss
