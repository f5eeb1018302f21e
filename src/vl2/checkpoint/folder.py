"""Read the layout of a checkpoint folder, check its tensors, and create a new folder atomically."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vl2.checkpoint.empty_model import build_empty
from vl2.checkpoint.names import OPTIONAL, Place, shapes, stored_name
from vl2.checkpoint.quantization_config import QuantizationConfig
from vl2.checkpoint.safetensors_file import StoredTensor, read_header
from vl2.config import Json, ModelConfig
from vl2.errors import UserError
from vl2.model import VL2

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
NAMES_SHOWN = 5

Progress = Callable[[int, int], None]  # called with the bytes done so far and the total bytes


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder with its parsed config.json."""

    folder: Path
    config: ModelConfig
    quantization: QuantizationConfig | None  # None for plain weights

    @classmethod
    def of(cls, folder: Path) -> Checkpoint:
        config = ModelConfig.from_file(folder / CONFIG)
        return cls(folder=folder, config=config, quantization=QuantizationConfig.of(config, folder))

    def build_empty(self) -> VL2:
        """Return a model on the meta device whose state dict has the layout of the files."""
        return build_empty(self.config, None if self.quantization is None else self.quantization.scheme)

    def stored_tensors(self, model: VL2) -> tuple[list[Place], dict[str, StoredTensor]]:
        """Return the tensors' places in a model from `build_empty`, and the stored tensors by their names in the files.

        Raise UserError unless the folder holds exactly the tensors of the model, by name and shape.
        """
        expected, stored = shapes(model), stored_tensors(self.folder)
        check_tensors({place.name: shape for place, shape in expected.items()}, stored, self.folder)
        for name, buffer in model.named_buffers():
            # Only the codes of quantized layers have one byte per element. Codes of another type would be read as
            # different numbers, whereas tensors that are not quantized may be cast.
            if buffer.dtype.itemsize != 1:
                continue
            if (found := stored[stored_name(model, name)].dtype) != buffer.dtype:
                raise UserError(f"{self.folder} holds {name} as {found}, and {buffer.dtype} is needed")
        return list(expected), stored

    @property
    def dtype(self) -> torch.dtype:
        """The PyTorch type that config.json names in `torch_dtype`."""
        dtype: torch.dtype = getattr(torch, self.config.torch_dtype)
        return dtype


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a folder by its name in the files. Raise UserError if a name is stored twice."""
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise UserError(f"{name} is stored twice, in {tensors[name].path.name} and {file.name}")
            tensors[name] = tensor
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's weight files. Raise UserError if there are none, or if one that the index names is missing.

    Pickled weights are refused, because unpickling can run code.
    """
    if (folder / INDEX).is_file():
        try:
            weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted({str(name) for name in weight_map.values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / INDEX} is not a valid index: {error!r}") from None
        if any(Path(name).name != name for name in names):
            raise UserError(f"{folder / INDEX} names files outside its folder")
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise UserError(f"{folder} lacks {len(absent)} of {len(names)} weight files: {_some(absent)}")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if shards:  # the index is missing; a missing shard will be reported later as missing tensors
        return shards
    pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLED]
    if pickled:
        raise UserError(f"{folder} holds {_some(pickled)}, which can run code when read: only safetensors are loaded")
    raise UserError(f"no {SINGLE} or {INDEX} in {folder}")


def check_tensors(expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Raise UserError unless the stored tensors are the expected ones, by name and shape."""
    missing = [name for name in expected if name not in stored]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors: {_some(missing)}")
    extra = sorted(stored.keys() - expected.keys() - set(OPTIONAL))
    if extra:
        raise UserError(f"{folder} holds {len(extra)} tensors that config.json does not describe: {_some(extra)}")
    wrong = [
        f"{name} is {list(stored[name].shape)}, config.json says {list(shape)}"
        for name, shape in expected.items()
        if stored[name].shape != shape
    ]
    if wrong:
        raise UserError(f"{folder} holds {len(wrong)} tensors of another shape: {_some(wrong)}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def refuse_existing(folder: Path) -> None:
    """Raise UserError if the folder exists and is not empty, so that nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists: choose a new folder to save to")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to, and rename it to `folder` when the context ends without an error.

    Readers therefore never see a folder that is only partly written. Raise UserError if `folder` exists and is not
    empty, or cannot be created.
    """
    refuse_existing(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
