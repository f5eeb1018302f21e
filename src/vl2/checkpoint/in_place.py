"""Memory-map tensors from the checkpoint's files instead of copying them, so that loading does not wait for them.

Which tensors are asked to stay is the policy's to say (`vl2.checkpoint.policy`). Of these a tensor does stay where it
lies in its file as the model wants it; large ones of a plain checkpoint only where the system holds their file in huge
pages, for in small ones they would be read at half the speed or less. So Linux keeps a file that it has read from a
disk into a map with advice, or that was written by some MB at a time as downloads are, on file systems that know huge
pages (ext4 since 6.16, XFS); not one that was written by some KB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vl2.checkpoint.names import Place, stored_name
from vl2.checkpoint.pages import MappedFile, lies_in_huge_pages
from vl2.checkpoint.safetensors_file import ALIGNMENT, StoredTensor, read_into
from vl2.model import VL2
from vl2.model.memory_mapped_experts import MemoryMappedExperts, Pair
from vl2.model.moe import MoE

TABLE = "language.model.embed_tokens.weight"
HEAD = "language.lm_head.weight"
LEAST_BYTES = 1 << 28  # a smaller file is copied in no time

Bring = Callable[[MappedFile, int, int], None]  # brings a part of a file into memory, by offset and bytes


class FileViews:
    """The tensors of a checkpoint that a model views in their files."""

    def __init__(
        self,
        stored: Mapping[str, StoredTensor],
        dtype: torch.dtype,
        file_kind: Callable[[Path], MappedFile] = MappedFile,
    ) -> None:
        """`stored` by the names in the files; `dtype` is what the parameters of the model are wanted in."""
        self.stored = stored
        self._dtype, self._file_kind = dtype, file_kind
        self._files: dict[Path, MappedFile] = {}
        self._parts: list[tuple[Path, int, int]] = []  # of files, by offset and bytes: what is to be locked in memory
        self._bring: dict[str, Callable[[], None]] = {}  # by the names of tensors that stay

    def view_table(self, model: VL2) -> None:
        """Let a model view the token table, if that may stay. In place."""
        table = stored_name(model, TABLE)
        if self._fits(table, self._dtype):
            # Only asked for: a prompt wants some of its rows.
            model.language.model.embed_tokens.weight = self._parameter(table, MappedFile.prefetch)

    def view_large(self, model: VL2) -> None:
        """Let a plain model whose weights have no memory yet view table, head and routed experts. In place."""
        self.view_table(model)
        head = stored_name(model, HEAD)
        if self._may_stay([head]):
            model.language.lm_head.weight = self._parameter(head, MappedFile.touch)
        for path, module in model.named_modules():
            if isinstance(module, MoE):
                names = _projections(stored_name(model, f"{path}.experts"), module.gate.num_experts)
                if self._may_stay([name for expert in names for name in expert]):
                    module.add_module("experts", MemoryMappedExperts([self._pair(*expert) for expert in names]))

    def view_all(self, model: VL2, wanted: Sequence[Place], *, huge_pages: bool) -> None:
        """Let a model whose weights have no memory yet view every tensor that has a place of its own. In place."""
        self.view_table(model)
        for place in wanted:
            if place.parameter == TABLE:
                continue
            owner, _, leaf = place.parameter.rpartition(".")
            module = model.get_submodule(owner)
            is_parameter = leaf in module._parameters
            if self._fits(place.name, self._dtype if is_parameter else module.get_buffer(leaf).dtype):
                view = self._parameter(place.name, MappedFile.read)
                setattr(module, leaf, view if is_parameter else view.detach())
        for file in self._files.values():
            file.prefer_huge_pages(huge_pages)

    def bring(self, name: str) -> bool:
        """Bring a tensor of those that stay into memory and return True; False for others."""
        if name not in self._bring:
            return False
        self._bring[name]()
        return True

    def mlock(self) -> None:
        """Lock the large tensors of a plain checkpoint in memory, once they are there."""
        for path, offset, nbytes in self._parts:
            self.file(path).mlock(offset, nbytes)

    def file(self, path: Path) -> MappedFile:
        """Return a file of the checkpoint, mapped once."""
        if path not in self._files:
            self._files[path] = self._file_kind(path)
        return self._files[path]

    def _fits(self, name: str, dtype: torch.dtype) -> bool:
        """Whether a tensor lies in its file as it is wanted."""
        stored = self.stored[name]
        return stored.dtype == dtype and stored.offset % stored.dtype.itemsize == 0

    def _may_stay(self, names: Sequence[str]) -> bool:
        """Whether tensors that are read from end to end, and lie together, may stay."""
        if not all(self._fits(name, self._dtype) for name in names):
            return False
        # MKL rounds a float32 product of one row by how the matrix is aligned: elsewhere its bits would be others.
        if self._dtype == torch.float32 and any(self.stored[name].offset % ALIGNMENT for name in names):
            return False
        by_file: dict[Path, list[StoredTensor]] = {}
        for name in names:
            by_file.setdefault(self.stored[name].path, []).append(self.stored[name])
        parts = [_part(path, tensors) for path, tensors in by_file.items()]
        if not all(path.stat().st_size >= LEAST_BYTES and lies_in_huge_pages(path, *part) for path, *part in parts):
            return False
        for path, *_ in parts:
            self.file(path).prefer_huge_pages(True)
        self._parts += parts
        return True

    def _parameter(self, name: str, bring: Bring) -> nn.Parameter:
        view = self._view(self.stored[name], bring, name)
        return nn.Parameter(view, requires_grad=view.is_floating_point())

    def _view(self, stored: StoredTensor, bring: Bring, *names: str) -> Tensor:
        """Return a tensor that views a file; whoever asks for one of these names brings it into memory."""
        file = self.file(stored.path)
        for name in names:
            self._bring[name] = partial(bring, file, self.stored[name].offset, self.stored[name].nbytes)
        return file.tensor(stored)

    def _pair(self, gate_name: str, up_name: str, down_name: str) -> Pair:
        """Return the matrices of one expert. Gate and up projection are copied where they do not follow each other."""
        gate, up, down = (self.stored[name] for name in (gate_name, up_name, down_name))
        F, D = gate.shape
        if (gate.path, gate.offset + gate.nbytes) == (up.path, up.offset):
            both = replace(gate, shape=(2 * F, D), nbytes=2 * gate.nbytes)
            gate_up = self._view(both, MappedFile.touch, gate_name, up_name)
        else:
            gate_up = torch.empty(2 * F, D, dtype=self._dtype)
            for name, half in zip((gate_name, up_name), gate_up.chunk(2), strict=True):
                self._bring[name] = partial(read_into, half, self.stored[name])
        return gate_up, self._view(down, MappedFile.touch, down_name)


def _part(path: Path, tensors: Sequence[StoredTensor]) -> tuple[Path, int, int]:
    """Return a file, and offset and bytes of the part of it that tensors span."""
    first = min(tensor.offset for tensor in tensors)
    return path, first, max(tensor.offset + tensor.nbytes for tensor in tensors) - first


def _projections(path: str, num_experts: int) -> list[list[str]]:
    """Return the released names of every expert's gate, up and down projection."""
    leaves = ("gate_proj", "up_proj", "down_proj")
    return [[f"{path}.{expert}.{leaf}.weight" for leaf in leaves] for expert in range(num_experts)]
