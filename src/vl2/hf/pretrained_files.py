"""Arguments of from_pretrained and save_pretrained in our own types, and saving into a folder that has files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.infer.vlm import choose_device

# Options that transformers and its users often pass, and that may be ignored: no code of a checkpoint runs, only
# safetensors are read and written, and loading never holds two copies.
_IGNORED = frozenset(
    ("trust_remote_code", "use_safetensors", "safe_serialization", "low_cpu_mem_usage", "weights_only", "_from_auto")
)


def refuse_unknown(call: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that has no effect here, unless its value is None, False or empty text.

    The Auto classes of transformers pass options that nobody asked for, such as subfolder="".
    """
    unknown = [name for name, value in options.items() if value not in (None, False, "") and name not in _IGNORED]
    if unknown:
        raise UserError(f"{call} does not take {', '.join(unknown)}")


def device_of(device_map: Any) -> torch.device:
    """Return the device of a device map, which may be a device, {"": device}, "auto", or None for the CPU.

    Raise UserError for a map over several devices.
    """
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, torch.device | str | int) and not isinstance(device_map, bool):
        name = f"cuda:{device_map}" if isinstance(device_map, int) else str(device_map)
        return choose_device(name)
    raise UserError(f'device_map must be a device, {{"": device}} or "auto" (one device), got {device_map!r}')


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a dtype by its name, or None for None and "auto" (the checkpoint's dtype)."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = dtype.removeprefix("torch.")
    if name == "auto":
        return None
    if name not in DTYPES:
        raise UserError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype}")
    return DTYPES[name]


def shard_bytes(size: int | str) -> int:
    """Return the bytes of a size like 5000000000 or "5GB"."""
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"(\d+)(KB|MB|GB)", size.strip().upper())
    if found is None:
        raise UserError(f"max_shard_size must be a number of bytes, or one of KB, MB or GB like '5GB', got {size!r}")
    return int(found[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[found[2]]


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a new folder, then move its files into `folder` and remove the weights of an earlier save.

    `folder` may hold other files, which stay. An earlier save is removed only after the new one is complete.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder to save to")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".partial-") as scratch:
        fresh = Path(scratch) / "checkpoint"
        write(fresh)
        for old in folder.glob("model*.safetensors*"):
            old.unlink()  # a shard of an earlier save would be read as part of the new one
        for file in fresh.iterdir():
            os.replace(file, folder / file.name)
