"""Read safetensors files directly into allocated memory, and write them tensor by tensor.

The safetensors library maps a file and returns views or copies of the map. Stacked experts filled that way would need
memory for the mapped pages and the copy at once, and for writing the library needs all tensors in memory. Here a tensor
is read into its final place, so that loading needs no more memory than the model, and writing holds one tensor at a
time.

Format: 8 bytes little-endian header length, a JSON header (name -> dtype, shape, data_offsets), the data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vl2.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
ALIGNMENT = 64
PAGE = 4096
PIECE_BYTES = 16 << 20  # written at once: a multiple of 2 MiB, so that the system can cache the file in huge pages


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name. Raise UserError if the file is truncated, damaged or not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (MAX_HEADER_BYTES + 1,)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise UserError(f"{path} is not a safetensors file, or was cut short ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            tensors = {
                name: _stored(path, entry, data_start=8 + length)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} has a damaged safetensors header: {error}") from None
    for name, tensor in tensors.items():
        if tensor.nbytes != prod(tensor.shape) * tensor.dtype.itemsize:
            raise UserError(
                f"{path} has a damaged header: {name} of shape {list(tensor.shape)} has {tensor.nbytes} bytes"
            )
        if tensor.offset + tensor.nbytes > size:
            raise UserError(f"{path} was cut short: {name} ends at byte {tensor.offset + tensor.nbytes} of {size}")
    return tensors


def _stored(path: Path, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end:
        raise ValueError(f"offsets {start}..{end}")
    return StoredTensor(
        path=path,
        dtype=DTYPES[entry["dtype"]],
        shape=tuple(int(n) for n in entry["shape"]),
        offset=data_start + start,
        nbytes=end - start,
    )


def read_into(target: Tensor, stored: StoredTensor) -> None:
    """Read a stored tensor into `target`, which has the same shape, in place, and cast it if the types differ."""
    if target.device.type == "cpu" and target.dtype == stored.dtype and target.is_contiguous():
        _read_bytes(target, stored)
        return
    target.copy_(read_tensor(stored))


def read_tensor(stored: StoredTensor) -> Tensor:
    """Return the tensor in new memory, in the type of the file."""
    fresh = torch.empty(stored.shape, dtype=stored.dtype)
    _read_bytes(fresh, stored)
    return fresh


def _read_bytes(target: Tensor, stored: StoredTensor) -> None:
    buffer = memoryview(target.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    done = 0
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        while done < stored.nbytes:
            # Read at most 1 GiB per call: a single read on Linux returns at most 2 GiB.
            count = file.readinto(buffer[done : done + (1 << 30)])
            if not count:
                raise UserError(f"{stored.path} was cut short while it was read")
            done += count


class SafetensorsWriter:
    """Writes one file, tensor by tensor. When the context ends without an error, all tensors are on disk (fsync).

    By default the tensors have the order of the safetensors library: the widest type first, then by name. With
    `aligned` they have the given order, and every tensor whose size is a multiple of 64 bytes begins at a multiple of
    64 bytes in the file, and so in a map of it, as the processor's widest loads require. Because the format forbids
    gaps, tensors of other sizes come last, the widest type first.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], *, aligned: bool) -> None:
        """Begin a file. `tensors` gives names, shapes and types only; they may be on the meta device."""
        self.path, self._tensors = path, tensors
        self.order = _aligned_order(tensors) if aligned else _usual_order(tensors)
        self._held: dict[str, Tensor] = {}  # tensors that were given before their turn
        self._num_written = 0
        self._piece = bytearray(_header(self.order, tensors, multiple=PAGE if aligned else 8))
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                assert self._num_written == len(self.order), f"{self.path} still lacks {self.order[self._num_written]}"
                self._flush(len(self._piece))
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, name: str, values: Tensor) -> None:
        """Write one tensor. A tensor that is not the next in `order` is held in memory until its turn."""
        expected = self._tensors[name]
        assert (values.shape, values.dtype) == (expected.shape, expected.dtype), f"{name} is not what was announced"
        if name != self.order[self._num_written]:
            self._held[name] = values
            return
        self._append(values)
        while self._num_written < len(self.order) and self.order[self._num_written] in self._held:
            self._append(self._held.pop(self.order[self._num_written]))

    def _append(self, values: Tensor) -> None:
        flat = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        data = memoryview(flat.numpy())  # type: ignore[arg-type]
        for start in range(0, len(data), PIECE_BYTES):
            self._piece += data[start : start + PIECE_BYTES]
            if len(self._piece) >= PIECE_BYTES:
                self._flush(PIECE_BYTES)
        self._num_written += 1

    def _flush(self, nbytes: int) -> None:
        with memoryview(self._piece) as piece:
            done = 0
            while done < nbytes:
                done += self._file.write(piece[done:nbytes])
        del self._piece[:nbytes]


def _usual_order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _aligned_order(tensors: Mapping[str, Tensor]) -> list[str]:
    def rank(name: str) -> tuple[bool, int]:
        is_odd = tensors[name].nbytes % ALIGNMENT != 0
        return is_odd, -tensors[name].element_size() if is_odd else 0

    return sorted(tensors, key=rank)  # the sort is stable, so tensors of equal rank keep the given order


def _header(order: Sequence[str], tensors: Mapping[str, Tensor], multiple: int) -> bytes:
    """Return the header with its length prefix, padded with spaces to a multiple of `multiple` bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": TYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % multiple)
    return struct.pack("<Q", len(text)) + text
