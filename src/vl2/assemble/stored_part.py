"""Map one part of a new checkpoint to the stored tensors of another model, and read them. Every tensor must match."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vl2.checkpoint.folder import check_tensors, stored_tensors
from vl2.checkpoint.safetensors_file import StoredTensor, read_tensor
from vl2.errors import UserError

READABLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The stored tensors that one tensor of the new checkpoint is made from."""

    names: tuple[str, ...]  # names of stored tensors, which are joined along the first axis
    shape: tuple[int, ...]  # shape of each stored tensor
    rows: tuple[int, int] | None = None  # range of rows to use, if the stored tensor holds several of ours


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """The stored tensors of a model, each of which is either used or explicitly left out."""

    stored: Mapping[str, StoredTensor]  # only the tensors that are used
    origins: Mapping[str, Origin]  # keyed by the names in the new checkpoint
    left_out: Mapping[str, tuple[str, ...]]  # names of the stored tensors that are not used, by kind

    @classmethod
    def of(cls, folder: Path, origins: Mapping[str, Origin], droppable: Mapping[str, str]) -> StoredPart:
        """Match the tensors of a folder to their origins. `droppable` has regular expressions for whole names, by kind.

        Raise UserError if tensors are missing, unexpected, of a wrong shape, or not of a type in READABLE.
        """
        stored = stored_tensors(folder)
        left_out = {kind: tuple(n for n in stored if re.fullmatch(names, n)) for kind, names in droppable.items()}
        dropped = {name for names in left_out.values() for name in names}
        taken = {name: tensor for name, tensor in stored.items() if name not in dropped}
        expected = {name: origin.shape for origin in origins.values() for name in origin.names}
        check_tensors(expected, taken, folder)
        for name, tensor in taken.items():
            if tensor.dtype not in READABLE:
                allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in READABLE)
                raise UserError(f"{folder} holds {name} as {tensor.dtype}: weights must be {allowed}")
        return cls(stored=taken, origins=origins, left_out={kind: names for kind, names in left_out.items() if names})

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the values of the new checkpoint's tensor `name`, in the given shape and the type of the file."""
        origin = self.origins[name]
        tensors = [read_tensor(self.stored[each]) for each in origin.names]
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return (whole if origin.rows is None else whole[slice(*origin.rows)]).reshape(shape)
