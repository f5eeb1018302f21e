"""Writing a safetensors file tensor by tensor: the header first, from shapes alone, then the data in its order.

The data is ordered and the header filled up so that every tensor whose size is a multiple of 64 bytes begins at such an
address, in the file and in a map of it: what the widest loads of a processor want. The format forbids gaps, so the
others stand last, the widest type first.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from vl2.weights.safetensors_file import DTYPES

ALIGNMENT = 64
PAGE = 4096
TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsWriter:
    """Writes tensors in any order. Leaving the context without an error means that all are on disk."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Begin a file; the tensors give names, shapes and types, and may be on the meta device."""
        self.path, self._tensors = path, tensors
        self._left = set(tensors)
        starts, header = _layout(tensors)
        self._starts = {name: len(header) + start for name, start in starts.items()}
        self._file = path.open("wb")
        self._file.write(header)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                assert not self._left, f"{self.path} still lacks {len(self._left)} tensors"
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, name: str, values: Tensor) -> None:
        """Write one tensor."""
        expected = self._tensors[name]
        assert (values.shape, values.dtype) == (expected.shape, expected.dtype), f"{name} is not what was announced"
        self._left.remove(name)
        flat = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._file.seek(self._starts[name])
        self._file.write(memoryview(flat.numpy()))  # type: ignore[arg-type]


def _layout(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], bytes]:
    """Return where each tensor begins after the header, and the header."""

    def rank(name: str) -> tuple[bool, int]:
        is_odd = tensors[name].nbytes % ALIGNMENT != 0
        return is_odd, -tensors[name].element_size() if is_odd else 0

    starts: dict[str, int] = {}
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors, key=rank):  # a stable sort: otherwise in the order that was given
        tensor = tensors[name]
        starts[name], end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    return starts, struct.pack("<Q", len(text)) + text
