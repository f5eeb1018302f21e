"""Store a nested state as safetensors and JSON. Every rank writes its parts, and any number of ranks can read them.

A state is what `state_dict` returns: mappings and lists of tensors and plain values. A tensor is identified by its
path, such as `model/language.model.norm.weight`. For a sharded tensor, each rank stores its block with the block's
origin and the shape of the whole tensor, so that another number of ranks can find the values it needs.

Reading safetensors and JSON runs no code. PyTorch's own sharded format has a pickle as its table of contents, which
can.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vl2.checkpoint.safetensors_file import StoredTensor, read_header, read_into
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Block:
    """One rank's part of a tensor: the part that begins at `origin` of a whole tensor of `shape`."""

    local: Tensor
    origin: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        return tuple(self.local.shape) == self.shape


BlockOf = Callable[[Tensor], Block]


def whole_block(tensor: Tensor) -> Block:
    """Return the block of a tensor that is not sharded."""
    return Block(local=tensor, origin=(0,) * tensor.dim(), shape=tuple(tensor.shape))


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of a state: its tensors on the CPU, its plain values as JSON values."""

    tensors: Mapping[str, Block]
    values: Any


def take_snapshot(state: Mapping[str, Any], block_of: BlockOf, *, writes_whole: bool) -> Snapshot:
    """Copy a state to the CPU. Only the rank with `writes_whole` copies tensors that several ranks hold in full.

    Tensors that share memory, such as a float32 weight and its master, share one copy.
    """
    tensors: dict[str, Block] = {}
    copies: dict[tuple[object, ...], Tensor] = {}
    for path, tensor in _tensors(state):
        block = block_of(tensor)
        if writes_whole or not block.is_whole:
            local = block.local.detach()
            key = (local.data_ptr(), local.shape, local.stride(), local.dtype, local.device)
            if key not in copies or not local.numel():
                copies[key] = torch.empty(local.shape, dtype=local.dtype, device="cpu").copy_(local)
            tensors[path] = replace(block, local=copies[key])
    return Snapshot(tensors=tensors, values=_values(state))


def write_tensors(snapshot: Snapshot, folder: Path, rank: int) -> None:
    """Write a rank's tensors, and then their table as the sign that they are complete. Raise OSError on failure."""
    file = folder / f"rank-{rank:05d}.safetensors"
    stored_as: dict[int, str] = {}  # by the copy
    for path, block in snapshot.tensors.items():
        stored_as.setdefault(id(block.local), path)
    try:
        save_file({path: snapshot.tensors[path].local for path in stored_as.values()}, file)
    except SafetensorError as error:
        raise OSError(None, str(error).removeprefix("Error while serializing: ")) from None
    sync(file)
    entries = {
        path: {"stored_as": stored_as[id(block.local)], "origin": list(block.origin), "shape": list(block.shape)}
        for path, block in snapshot.tensors.items()
    }
    write_json({"bytes": file.stat().st_size, "tensors": entries}, folder / f"rank-{rank:05d}.json")


def write_json(values: Any, path: Path) -> None:
    """Write a JSON file atomically, and wait until it is on disk."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(values), encoding="utf-8")
    sync(partial)
    partial.replace(path)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk. For folders on Windows, which does not support this, do nothing."""
    is_windows = os.name == "nt"
    if is_windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)  # fsync on Windows needs a writable file
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class _StoredBlock:
    origin: tuple[int, ...]
    shape: tuple[int, ...]  # of the whole
    stored: StoredTensor


class TensorReader:
    """Reads the tensors of a folder that any number of ranks wrote."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blocks: dict[str, list[_StoredBlock]] = {}
        for file in sorted(folder.glob("rank-*.safetensors")):
            table = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["tensors"]
            stored = read_header(file)
            for path, entry in table.items():
                block = _StoredBlock(
                    origin=tuple(entry["origin"]), shape=tuple(entry["shape"]), stored=stored[entry["stored_as"]]
                )
                self._blocks.setdefault(path, []).append(block)
        self._unread = set(self._blocks)

    def unread(self) -> list[str]:
        """Return the paths of the tensors that have not been read yet."""
        return sorted(self._unread)

    def read(self, path: str, wanted: Block) -> None:
        """Fill this rank's block of a tensor in place. Raise UserError if it is missing or has another shape."""
        blocks = self._find(path)
        self._unread.discard(path)
        if blocks[0].shape != wanted.shape:
            raise UserError(f"{self._folder}: {path} is {list(blocks[0].shape)}, the model has {list(wanted.shape)}")
        local = wanted.local.detach()
        num_filled = sum(_copy_overlap(local, wanted.origin, block) for block in blocks)
        if num_filled != local.numel():
            raise UserError(f"{self._folder} has only {num_filled} of {local.numel()} values of {path}")

    def _find(self, path: str) -> list[_StoredBlock]:
        if path not in self._blocks:
            raise UserError(f"{self._folder} has no {path}: another kind of run wrote it")
        return self._blocks[path]


def _copy_overlap(target: Tensor, origin: tuple[int, ...], block: _StoredBlock) -> int:
    """Fill the part of `target` (which begins at `origin`) that a stored block covers. Return the number of values."""
    stored = block.stored
    if (origin, tuple(target.shape)) == (block.origin, stored.shape):
        read_into(target, stored)
        return target.numel()
    low = [max(a, b) for a, b in zip(origin, block.origin, strict=True)]
    ends = zip(origin, target.shape, block.origin, stored.shape, strict=True)
    high = [min(a + size, b + stored_size) for a, size, b, stored_size in ends]
    if any(h <= l for l, h in zip(low, high, strict=True)):
        return 0
    fresh = torch.empty(stored.shape, dtype=stored.dtype)
    read_into(fresh, stored)
    part = target[tuple(slice(l - a, h - a) for l, h, a in zip(low, high, origin, strict=True))]
    part.copy_(fresh[tuple(slice(l - b, h - b) for l, h, b in zip(low, high, block.origin, strict=True))])
    return part.numel()


def fill(template: Any, values: Any, reader: TensorReader, block_of: BlockOf, path: str = "") -> Any:
    """Return a state like `template`, with its tensors filled in place by `reader` and plain values from `values`."""
    if isinstance(template, Tensor):
        reader.read(path, block_of(template))
        return template
    if isinstance(template, Mapping):
        found = dict(values or {})
        inner = {
            name: fill(one, found.pop(str(name), None), reader, block_of, _join(path, name))
            for name, one in template.items()
        }
        return {**inner, **{name: one for name, one in found.items() if one is not None}}
    if isinstance(template, list | tuple) and any(isinstance(one, Tensor | Mapping | list | tuple) for one in template):
        return [fill(one, values[i], reader, block_of, _join(path, i)) for i, one in enumerate(template)]
    return values


def _tensors(state: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, Mapping):
        for name, one in state.items():
            yield from _tensors(one, _join(path, name))
    elif isinstance(state, list | tuple):
        for i, one in enumerate(state):
            yield from _tensors(one, _join(path, i))


def _values(state: Any) -> Any:
    """Return the plain values of a state, with None in place of tensors."""
    if isinstance(state, Tensor):
        return None
    if isinstance(state, Mapping):
        return {str(name): _values(one) for name, one in state.items()}
    return [_values(one) for one in state] if isinstance(state, list | tuple) else state


def _join(path: str, name: object) -> str:
    return f"{path}/{name}" if path else str(name)
