"""Map our parameters to the tensor names in the released files. All code that reads or writes checkpoints uses this.

Our names equal those of DeepSeek-VL2's files with two exceptions: the released name of the view separator is misspelt,
and the released files store the experts of a layer one by one. Our experts are stacked, with gate and up projection in
one matrix. The files of the DeepSeek-OCR family have the same two differences and other prefixes: everything but the
head is under `model.`, the encoders have different names, and the language model has no prefix of its own.

Source: released files of DeepSeek-VL2; of the family, what the released `load_weights` and transformers' renaming of
these files expect. Golden: tests/golden/reference/checkpoints, tests/golden/ocr.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vl2.model import VL2
from vl2.model.vision import VisionEncoder

RENAMED = {"view_separator": "view_seperator"}
# Our prefixes and those of the DeepSeek-OCR family's files. The first prefix that matches counts.
OCR_PREFIXES = {
    "vision.sam.": "model.sam_model.",
    "vision.clip.": "model.vision_model.",
    "vision.query_encoder.query_": "model.qwen2_model.query_",
    "vision.query_encoder.": "model.qwen2_model.model.model.",
    "projector.": "model.projector.",
    "image_newline": "model.image_newline",
    "view_seperator": "model.view_seperator",
    "language.": "",
}
# Holds the numbers 0, 1, 2, ...; programs that keep it as a buffer write it, and loading does not need it.
OPTIONAL = ("model.vision_model.embeddings.position_ids",)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a stored tensor belongs in the model: a whole parameter, or a contiguous part of a stacked one."""

    name: str  # name in the file
    parameter: str  # name in the model's state dict
    expert: int | None = None  # index in the stack of experts
    rows: tuple[int, int] | None = None  # range of rows in the expert's matrix; None for the whole matrix

    def view(self, parameter: Tensor) -> Tensor:
        """Return the part of the parameter that this tensor fills, as a view that shares the parameter's memory."""
        if self.expert is None:
            return parameter
        matrix = parameter[self.expert]
        return matrix if self.rows is None else matrix[slice(*self.rows)]


def shapes(model: VL2) -> dict[Place, tuple[int, ...]]:
    """Return the places and shapes of all tensors in the files of this model."""
    state = model.state_dict()
    return {place: tuple(place.view(state[place.parameter]).shape) for place in places(model)}


def places(model: VL2) -> Iterator[Place]:
    """Yield a Place for every tensor in the files of this model, in the order of its state dict.

    Quantized experts stay stacked in the files, so each of their tensors has one Place.
    """
    rename = partial(stored_name, model)
    for parameter, tensor in model.state_dict().items():
        prefix, _, leaf = parameter.rpartition(".")
        if not prefix.endswith(".experts") or leaf not in ("gate_up_proj", "down_proj"):
            yield Place(name=rename(parameter), parameter=parameter)
            continue
        for expert in range(tensor.shape[0]):
            if leaf == "gate_up_proj":
                hidden = tensor.shape[1] // 2
                for name, rows in (("gate_proj", (0, hidden)), ("up_proj", (hidden, 2 * hidden))):
                    stored = rename(f"{prefix}.{expert}.{name}.weight")
                    yield Place(name=stored, parameter=parameter, expert=expert, rows=rows)
            else:
                stored = rename(f"{prefix}.{expert}.{leaf}.weight")
                yield Place(name=stored, parameter=parameter, expert=expert)


def stored_name(model: VL2, name: str) -> str:
    """Return a tensor's name in this model's files, given its name in our scheme."""
    name = RENAMED.get(name, name)
    if isinstance(model.vision, VisionEncoder):
        return name
    ours, theirs = next((ours, theirs) for ours, theirs in OCR_PREFIXES.items() if name.startswith(ours))
    return theirs + name.removeprefix(ours)
