"""Quantise a checkpoint to files, module by module: never more in memory than one module and the tensor it is made of.

The files hold the state dict of the quantised model: what is not quantised under its released name, and beside it the
codes and scales of each layer, experts stacked, laid out as the products read them. So loading is mapping: nothing is
unpacked, joined or copied, and the bytes of one expert are four byte ranges that can be paged in and out. No
program that knows the released names could read the codes anyway, so the experts do not keep theirs.

Source: none; the layout is this project's own. `vl2.quant.read` reads it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.model import VL2
from vl2.paths import local_path
from vl2.quant.apply import allocate_quantized, quantize_into
from vl2.quant.config import QuantizationConfig
from vl2.quant.scheme import Scheme
from vl2.weights.load import (
    INDEX,
    QUANTIZED,
    SINGLE,
    Progress,
    build_empty,
    check_tensors,
    fill,
    materialize,
    shape_of,
    stored_tensors,
)
from vl2.weights.locate import locate_checkpoint
from vl2.weights.names import RENAMED, Place, places
from vl2.weights.new_folder import new_folder, refuse_existing, write_json
from vl2.weights.safetensors_file import StoredTensor, read_into, read_tensor
from vl2.weights.safetensors_writer import SafetensorsWriter

MAX_SHARD_BYTES = 2_000_000_000
BESIDE = (".json", ".jinja", ".txt", ".model")  # files beside the weights: tokenizer, processor, chat template
HEADERS_BYTES = 1 << 20  # a generous bound of what the files hold besides tensors


def quantise_checkpoint(
    name: str | Path,
    out: str | Path,
    *,
    weights: str = "int4",
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a quantised copy of a plain checkpoint (a folder or hub id) to a new folder, for `vl2.load` like any other.

    UserError if the folder exists, the checkpoint is quantised already, or the disk has no room.
    """
    quantization = QuantizationConfig.named(weights)
    out = local_path(out)
    refuse_existing(out)
    folder = locate_checkpoint(name)
    config = ModelConfig.from_file(folder / "config.json")
    already = QuantizationConfig.of(config, folder)
    if already is not None:
        raise UserError(f"{folder} is quantised to {already.weights} already: quantise the plain checkpoint")
    stored = stored_tensors(folder)
    plain = build_empty(config)
    wanted = list(places(plain))
    check_tensors({place.name: shape_of(plain, place) for place in wanted}, stored, folder)
    source = _Released(wanted, stored, progress)
    beside = [file for file in sorted(folder.iterdir()) if _is_beside(file)]
    write_quantized(config, quantization, out, source.fill, beside=beside, max_shard_bytes=max_shard_bytes)


def write_quantized(
    config: ModelConfig,
    quantization: QuantizationConfig,
    out: Path,
    fill_module: Callable[[VL2, str], None],
    *,
    beside: list[Path],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a quantised checkpoint whose tensors come from `fill_module(model, name)`, module by module.

    It is called when the named module of the model has memory, uninitialised; all others are on the meta device.
    """
    model = empty_quantized(config, quantization.scheme, getattr(torch, config.torch_dtype))
    files = list(_shards(model, max_shard_bytes))
    _check_room(out, sum(module.nbytes for file in files for module in file))
    with new_folder(out) as partial, _disk_errors(out):
        weight_map: dict[str, str] = {}
        total = 0
        for number, modules in enumerate(files, 1):
            name = SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            announced = {file_name(key): tensor for module in modules for key, tensor in module.parameters.items()}
            with SafetensorsWriter(partial / name, announced) as writer:
                for module in modules:
                    _write_module(model, module, fill_module, writer)
            weight_map.update(dict.fromkeys(announced, name))
            total += sum(tensor.nbytes for tensor in announced.values())
        if len(files) > 1:
            write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        for file in beside:
            shutil.copyfile(file, partial / file.name)
        write_json(partial / "config.json", {**config.to_dict(), QUANTIZED: quantization.to_dict()})


def empty_quantized(config: ModelConfig, scheme: Scheme, dtype: torch.dtype) -> VL2:
    """Return a quantised model on the meta device; what is not quantised has the given type."""
    model = build_empty(config)
    allocate_quantized(model, scheme)
    materialize(model, dtype, torch.device("meta"))
    return model


def file_name(parameter: str) -> str:
    """Return the name that a tensor of a quantised model's state dict has in the files."""
    return RENAMED.get(parameter, parameter)


def put(model: VL2, place: Place, stored: StoredTensor) -> None:
    """Bring a released tensor to its place in a model: quantised where its layer is, else as it is. In place."""
    owner, _, leaf = place.parameter.rpartition(".")
    target = getattr(model.get_submodule(owner), leaf, None)
    if isinstance(target, Tensor):
        read_into(place.view(target.detach()), stored)
        return
    is_stored = quantize_into(model, place, read_tensor(stored))
    assert is_stored, f"{place.parameter} has no place in the model"


class _Released:
    """The tensors of a plain checkpoint as a source of modules."""

    def __init__(self, wanted: list[Place], stored: dict[str, StoredTensor], progress: Progress | None) -> None:
        self._stored, self._progress = stored, progress
        self._total = sum(tensor.nbytes for tensor in stored.values())
        self._done = 0
        self._of_module: dict[str, list[Place]] = {}
        for place in wanted:
            self._of_module.setdefault(place.parameter.rpartition(".")[0], []).append(place)

    def fill(self, model: VL2, name: str) -> None:
        mine = self._of_module[name]
        fill(mine, self._stored, lambda place, tensor: put(model, place, tensor), None)
        self._done += sum(self._stored[place.name].nbytes for place in mine)
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True, kw_only=True)
class _Module:
    """A module with tensors of its own, and these by their names in the state dict, on the meta device."""

    name: str
    parameters: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.parameters.values())


def _modules(model: VL2) -> Iterator[_Module]:
    state = model.state_dict()
    for owner, names in groupby(state, key=lambda name: name.rpartition(".")[0]):
        yield _Module(name=owner, parameters={name: state[name] for name in names})


def _shards(model: VL2, max_shard_bytes: int) -> Iterator[list[_Module]]:
    shard: list[_Module] = []
    for module in _modules(model):
        if shard and sum(held.nbytes for held in shard) + module.nbytes > max_shard_bytes:
            yield shard
            shard = []
        shard.append(module)
    yield shard


def _write_module(
    model: VL2, module: _Module, fill_module: Callable[[VL2, str], None], writer: SafetensorsWriter
) -> None:
    owner: nn.Module = model.get_submodule(module.name)
    owner.to_empty(device="cpu", recurse=False)
    fill_module(model, module.name)
    for parameter in module.parameters:
        writer.write(file_name(parameter), getattr(owner, parameter.rpartition(".")[2]))
    owner.to_empty(device="meta", recurse=False)


def _is_beside(file: Path) -> bool:
    is_ours = file.name == "config.json" or file.name.endswith(".index.json")
    return file.is_file() and file.suffix in BESIDE and not is_ours


def _check_room(out: Path, nbytes: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if nbytes + HEADERS_BYTES > free:
        raise UserError(f"{out} needs {nbytes / 1e9:.2f} GB, and {parent} has {free / 1e9:.2f} GB free")


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out} was not written: {error}") from error
