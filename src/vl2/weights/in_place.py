"""Weights of a model that only answers which stay in their files: what is not copied need not be waited for.

The token table always does, for a prompt wants some of its rows. Routed experts and the head are read from end to end
for every token, and do where the system holds their file in huge pages: in small ones they would be read at half the
speed or less. So Linux keeps a file that it has read from a disk into a map with advice, or that was written by some
MB at a time as downloads are, on file systems that know huge pages (ext4 since 6.16, XFS); not one that was written
tensor by tensor. The rest is copied: the encoder and what every token of a prompt meets are multiplied in tiles again
and again, for which each row wants to begin at a line of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vl2.model import VL2
from vl2.model.memory_mapped_experts import MemoryMappedExperts, Pair
from vl2.model.moe import MoE
from vl2.weights.huge_page_files import lies_in_huge_pages
from vl2.weights.mapped_file import MappedFile
from vl2.weights.safetensors_file import StoredTensor, read_into
from vl2.weights.safetensors_writer import ALIGNMENT

TABLE = "language.model.embed_tokens.weight"
HEAD = "language.lm_head.weight"
LEAST_BYTES = 1 << 28  # a smaller file is copied in no time


class InPlace:
    """The tensors of a checkpoint that a model views in their files."""

    def __init__(self, stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
        """`stored` by released names; `dtype` is what the model is wanted in."""
        self._stored, self._dtype = stored, dtype
        self._files: dict[Path, MappedFile] = {}
        self._parts: list[tuple[Path, int, int]] = []  # of files, by offset and bytes: what is read from end to end
        self._targets: dict[str, Tensor | None] = {}  # what a tensor is to be read into; None where it is viewed

    def leave_table(self, model: VL2) -> None:
        """Let a model view the token table, if that may stay. In place."""
        if self._fits(TABLE):
            model.language.model.embed_tokens.weight = self._parameter(TABLE)

    def leave(self, model: VL2) -> None:
        """Let a model whose weights have no memory yet view all that may stay. In place."""
        self.leave_table(model)
        if self._may_stay([HEAD]):
            model.language.lm_head.weight = self._parameter(HEAD)
        for path, module in model.named_modules():
            if isinstance(module, MoE):
                names = _projections(f"{path}.experts", module.gate.num_experts)
                if self._may_stay([name for expert in names for name in expert]):
                    module.add_module("experts", MemoryMappedExperts([self._pair(*expert) for expert in names]))

    def brings(self, name: str) -> bool:
        """Bring a tensor of those that stay into memory and return True; False for others.

        The table is only asked for.
        """
        if name not in self._targets:
            return False
        stored, target = self._stored[name], self._targets[name]
        if target is not None:
            read_into(target, stored)
        elif name == TABLE:
            self._file(stored.path).prefetch(stored.offset, stored.nbytes)
        else:
            self._file(stored.path).touch(stored.offset, stored.nbytes)
        return True

    def mlock(self) -> None:
        """Lock what is read from end to end in memory, once it is there."""
        for path, offset, nbytes in self._parts:
            self._file(path).mlock(offset, nbytes)

    def _fits(self, name: str) -> bool:
        """Whether a tensor lies in its file as it is wanted."""
        stored = self._stored[name]
        return stored.dtype == self._dtype and stored.offset % stored.dtype.itemsize == 0

    def _may_stay(self, names: Sequence[str]) -> bool:
        """Whether tensors that are read from end to end, and lie together, may stay."""
        if not all(self._fits(name) for name in names):
            return False
        # MKL rounds a float32 product of one row by how the matrix is aligned: elsewhere its bits would be others.
        if self._dtype == torch.float32 and any(self._stored[name].offset % ALIGNMENT for name in names):
            return False
        by_file: dict[Path, list[StoredTensor]] = {}
        for name in names:
            by_file.setdefault(self._stored[name].path, []).append(self._stored[name])
        parts = [_part(path, tensors) for path, tensors in by_file.items()]
        if not all(path.stat().st_size >= LEAST_BYTES and lies_in_huge_pages(path, *part) for path, *part in parts):
            return False
        for path, *_ in parts:
            self._file(path).prefer_huge_pages(True)
        self._parts += parts
        return True

    def _file(self, path: Path) -> MappedFile:
        if path not in self._files:
            self._files[path] = MappedFile(path)
        return self._files[path]

    def _parameter(self, name: str) -> nn.Parameter:
        self._targets[name] = None
        stored = self._stored[name]
        return nn.Parameter(self._file(stored.path).tensor(stored))

    def _pair(self, gate_name: str, up_name: str, down_name: str) -> Pair:
        """Return the matrices of one expert. Gate and up projection are copied where they do not follow each other."""
        gate, up, down = (self._stored[name] for name in (gate_name, up_name, down_name))
        (F, D), follows = gate.shape, (gate.path, gate.offset + gate.nbytes) == (up.path, up.offset)
        if follows:
            gate_up = self._file(gate.path).tensor(replace(gate, shape=(2 * F, D), nbytes=2 * gate.nbytes))
        else:
            gate_up = torch.empty(2 * F, D, dtype=self._dtype)
        halves = (None, None) if follows else gate_up.chunk(2)
        self._targets |= {gate_name: halves[0], up_name: halves[1], down_name: None}
        return gate_up, self._file(down.path).tensor(down)


def _part(path: Path, tensors: Sequence[StoredTensor]) -> tuple[Path, int, int]:
    """Return a file, and offset and bytes of the part of it that tensors span."""
    first = min(tensor.offset for tensor in tensors)
    return path, first, max(tensor.offset + tensor.nbytes for tensor in tensors) - first


def _projections(path: str, num_experts: int) -> list[list[str]]:
    """Return the released names of every expert's gate, up and down projection."""
    leaves = ("gate_proj", "up_proj", "down_proj")
    return [[f"{path}.{expert}.{leaf}.weight" for leaf in leaves] for expert in range(num_experts)]
