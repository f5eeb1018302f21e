"""Reading safetensors straight into memory that is already there.

The safetensors library maps a file and hands out copies or views of the map; filling stacked experts
from it holds the mapped pages and the copy at once. Here each tensor is read with one read into
its final place, so loading needs the size of the model and nothing else.

Format: 8 bytes little-endian header length, a JSON header (name -> dtype, shape, data_offsets), the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vl2.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name. UserError where the file is not whole or not safetensors."""
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
    """Fill a tensor of the same shape from its file, casting where the types differ. In place."""
    if target.device.type == "cpu" and target.dtype == stored.dtype and target.is_contiguous():
        _read_bytes(target, stored)
        return
    target.copy_(read_tensor(stored))


def read_tensor(stored: StoredTensor) -> Tensor:
    """Return a copy in memory, in the type of the file."""
    fresh = torch.empty(stored.shape, dtype=stored.dtype)
    _read_bytes(fresh, stored)
    return fresh


def _read_bytes(target: Tensor, stored: StoredTensor) -> None:
    buffer = memoryview(target.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    done = 0
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        while done < stored.nbytes:
            # One read moves at most 2 GiB on Linux.
            count = file.readinto(buffer[done : done + (1 << 30)])
            if not count:
                raise UserError(f"{stored.path} was cut short while it was read")
            done += count
