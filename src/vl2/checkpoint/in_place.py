"""Memory-map tensors from the checkpoint's files instead of copying them, which makes loading faster.

The policy (`vl2.checkpoint.policy`) chooses which tensors may be mapped. One of them is mapped only if it has the
wanted type and alignment in its file. Large tensors of a plain checkpoint must also be in huge pages of the page cache,
because from small pages they would be read at half the speed or less.

Linux keeps a file in huge pages if it was read from a disk into a map with that advice, or if it was written in blocks
of some MB, as downloads are. A file written in blocks of some KB does not qualify. The file system must support huge
pages too (ext4 since 6.16, XFS).
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
LEAST_BYTES = 1 << 28  # bytes; copying a smaller file takes so little time that mapping it has no advantage

Bring = Callable[[MappedFile, int, int], None]  # loads a byte range (offset, size) of a mapped file into memory


class FileViews:
    """The tensors of a checkpoint that a model views in the memory-mapped files."""

    def __init__(
        self,
        stored: Mapping[str, StoredTensor],
        dtype: torch.dtype,
        file_kind: Callable[[Path], MappedFile] = MappedFile,
    ) -> None:
        """`stored` is keyed by the names in the files; `dtype` is the wanted type of the model's parameters."""
        self.stored = stored
        self._dtype, self._file_kind = dtype, file_kind
        self._files: dict[Path, MappedFile] = {}
        self._parts: list[tuple[Path, int, int]] = []  # byte ranges (file, offset, size) to lock in memory
        self._bring: dict[str, Callable[[], None]] = {}  # loads a mapped tensor into memory, by its name in the files

    def view_table(self, model: VL2) -> None:
        """Make the model's token table a view of its file, in place, if type and alignment allow."""
        table = stored_name(model, TABLE)
        if self._fits(table, self._dtype):
            # Prefetching is enough, because a prompt needs only some rows of the table.
            model.language.model.embed_tokens.weight = self._parameter(table, MappedFile.prefetch)

    def view_large(self, model: VL2) -> None:
        """Map the token table, the head and the routed experts of a plain checkpoint, in place, where possible.

        The weights of the model must still be on the meta device.
        """
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
        """Map every tensor whose type and alignment allow it, in place.

        The weights of the model must still be on the meta device. `huge_pages` asks for huge pages or refuses them.
        """
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
        """Load a mapped tensor into memory and return True; return False if the tensor is not mapped."""
        if name not in self._bring:
            return False
        self._bring[name]()
        return True

    def mlock(self) -> None:
        """Lock the mapped large tensors of a plain checkpoint in memory. Call this after they have been loaded."""
        for path, offset, nbytes in self._parts:
            self.file(path).mlock(offset, nbytes)

    def file(self, path: Path) -> MappedFile:
        """Return the memory map of a file. Each file is mapped once."""
        if path not in self._files:
            self._files[path] = self._file_kind(path)
        return self._files[path]

    def _fits(self, name: str, dtype: torch.dtype) -> bool:
        """Return whether a tensor has the wanted type in its file and is aligned for that type."""
        stored = self.stored[name]
        return stored.dtype == dtype and stored.offset % stored.dtype.itemsize == 0

    def _may_stay(self, names: Sequence[str]) -> bool:
        """Return whether a group of large tensors may be mapped; if so, schedule their byte ranges for locking.

        The tensors are stored next to each other and are read completely for every token.
        """
        if not all(self._fits(name, self._dtype) for name in names):
            return False
        # MKL's float32 product of one row depends on the alignment of the matrix, so a matrix that is not aligned to
        # 64 bytes would give different last bits.
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
        """Return a tensor that views its file, and register how `bring` loads the tensors of these names."""
        file = self.file(stored.path)
        for name in names:
            self._bring[name] = partial(bring, file, self.stored[name].offset, self.stored[name].nbytes)
        return file.tensor(stored)

    def _pair(self, gate_name: str, up_name: str, down_name: str) -> Pair:
        """Return the matrices of one expert: gate and up projection [2F, D], and down projection [D, F].

        Gate and up projection can be viewed as one matrix only if they are adjacent in the file; otherwise they are
        copied.
        """
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
    """Return the file with the offset and size in bytes of the range that the tensors span."""
    first = min(tensor.offset for tensor in tensors)
    return path, first, max(tensor.offset + tensor.nbytes for tensor in tensors) - first


def _projections(path: str, num_experts: int) -> list[list[str]]:
    """Return for every expert the released names of its gate, up and down projection."""
    leaves = ("gate_proj", "up_proj", "down_proj")
    return [[f"{path}.{expert}.{leaf}.weight" for leaf in leaves] for expert in range(num_experts)]
