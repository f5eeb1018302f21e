"""Write checkpoints: save a model, or quantize a plain checkpoint module by module.

A plain folder has the released layout: config.json, and sharded safetensors under the released names. A quantized
folder holds the state dict of the quantized model. Tensors that are not quantized keep their released names. Codes and
scales of each layer have the layout that the kernels read, with the experts stacked.

A quantized folder is therefore loaded by mapping it: nothing is unpacked, joined or copied, and the bytes of one expert
are four byte ranges that can be paged in and out. The experts do not keep their released names, because programs that
know these names could not read the codes anyway. This layout is specific to this project.

A folder is written completely or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor

from vl2.checkpoint.empty_model import build_empty
from vl2.checkpoint.folder import CONFIG, INDEX, SINGLE, Checkpoint, Progress, new_folder, refuse_existing, write_json
from vl2.checkpoint.load import fill, put
from vl2.checkpoint.names import Place, places
from vl2.checkpoint.quantization_config import QUANTIZED, QuantizationConfig
from vl2.checkpoint.resolve import locate_checkpoint
from vl2.checkpoint.safetensors_file import SafetensorsWriter
from vl2.config import Json, ModelConfig
from vl2.errors import UserError
from vl2.files import local_path
from vl2.model import VL2

PLAIN_SHARD_BYTES = 5_000_000_000
QUANTIZED_SHARD_BYTES = 2_000_000_000
BESIDE = (".json", ".jinja", ".txt", ".model")  # files beside the weights: tokenizer, processor, chat template
HEADERS_BYTES = 1 << 20  # a generous upper bound of the bytes in the files besides tensors

FillModule = Callable[[VL2, str], None]  # fills the tensors of the named module, in place
Values = Callable[[Sequence[str]], Iterable[tuple[str, Tensor]]]  # returns the tensors of these names, in any order


def save_model(
    model: VL2,
    folder: Path,
    *,
    extra_files: Sequence[Path] = (),
    extra_json: dict[str, Json] | None = None,
    max_shard_bytes: int = PLAIN_SHARD_BYTES,
) -> None:
    """Write the model to a new folder, with copies of `extra_files` (tokenizer) and `extra_json` by file name.

    Raise UserError if the folder exists and is not empty, so that nothing is overwritten.
    """
    state = model.state_dict()
    tensors = {place.name: place.view(state[place.parameter]).detach() for place in places(model)}
    dtype = str(model.dtype).removeprefix("torch.")
    config = model.config.to_dict()
    if config.get("torch_dtype", dtype) != dtype:
        config["torch_dtype"] = dtype
    json_files = {CONFIG: config, **(extra_json or {})}

    def values(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensors[name]) for name in names)

    write_folder(folder, tensors, values, json_files, extra_files, max_shard_bytes=max_shard_bytes)


def quantize_checkpoint(
    name: str | Path,
    out: str | Path,
    *,
    weights: str = "int4",
    progress: Progress | None = None,
    max_shard_bytes: int = QUANTIZED_SHARD_BYTES,
) -> None:
    """Write a quantized copy of a plain checkpoint (a folder or hub id) to a new folder, which `vl2.load` can load.

    Raise UserError if the folder exists and is not empty, if the checkpoint is quantized already, or if the disk is too
    full.
    """
    quantization = QuantizationConfig.named(weights)
    out = local_path(out)
    refuse_existing(out)
    source = Checkpoint.of(locate_checkpoint(name))
    if source.quantization is not None:
        raise UserError(
            f"{source.folder} is quantized to {source.quantization.weights} already: quantize the plain checkpoint"
        )
    beside = [file for file in sorted(source.folder.iterdir()) if _is_beside(file)]
    write_quantized(
        source.config, quantization, out, _released(source, progress), beside, max_shard_bytes=max_shard_bytes
    )


quantise_checkpoint = quantize_checkpoint  # the British spelling, kept for programs that use it


def write_quantized(
    config: ModelConfig,
    quantization: QuantizationConfig,
    out: Path,
    fill_module: FillModule,
    beside: Sequence[Path],
    *,
    max_shard_bytes: int = QUANTIZED_SHARD_BYTES,
) -> None:
    """Write a quantized checkpoint whose tensors come from `fill_module`, module by module.

    When it is called, the named module has uninitialized memory, and all other modules are on the meta device. Memory
    therefore never holds more than one module and the plain tensor that is being quantized.
    """
    model = build_empty(config, quantization.scheme, getattr(torch, config.torch_dtype))
    wanted, state = list(places(model)), model.state_dict()
    tensors = {place.name: state[place.parameter] for place in wanted}
    json_files = {CONFIG: {**config.to_dict(), QUANTIZED: quantization.to_dict()}}
    coming = _by_module(model, wanted, fill_module)

    def values(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        return islice(coming, len(names))

    with disk_errors(out):
        write_folder(out, tensors, values, json_files, beside, max_shard_bytes=max_shard_bytes, aligned=True)


def write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    values: Values,
    json_files: Mapping[str, Json],
    copies: Sequence[Path],
    *,
    max_shard_bytes: int,
    aligned: bool = False,
) -> None:
    """Write a checkpoint to a new folder: its tensors, JSON files by name, and copies of files.

    `tensors` gives names, shapes and types, and may be on the meta device. `values` is called once per file and returns
    that file's tensors. Only `aligned` files can be mapped for the kernels. Raise UserError if the folder exists and is
    not empty, or if the disk is too full.
    """
    shards = list(_shards(tensors, max_shard_bytes))
    total = sum(tensor.nbytes for tensor in tensors.values())
    _check_room(folder, total)
    with new_folder(folder) as partial:
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with SafetensorsWriter(partial / file, shard, aligned=aligned) as writer:
                for name, tensor in values(writer.order):
                    writer.write(name, tensor)
                    del tensor  # free it before the next module is allocated
            weight_map.update(dict.fromkeys(shard, file))
        if len(shards) > 1:
            write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        for name, content in json_files.items():
            write_json(partial / name, content)
        for copied in copies:
            shutil.copyfile(copied, partial / copied.name)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn an OSError inside the context into a UserError, as when a disk fails or is full."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{out} was not written: {error}") from error


def _shards(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors.items():
        if shard and held + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor
        held += tensor.nbytes
    yield shard


def _by_module(model: VL2, wanted: Sequence[Place], fill_module: FillModule) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's tensors by their names in the files. One module at a time has memory, the rest is on meta."""
    for name, of_module in groupby(wanted, key=lambda place: place.parameter.rpartition(".")[0]):
        module = model.get_submodule(name)
        module.to_empty(device="cpu", recurse=False)
        fill_module(model, name)
        for place in of_module:
            yield place.name, getattr(module, place.parameter.rpartition(".")[2])
        module.to_empty(device="meta", recurse=False)


def _released(source: Checkpoint, progress: Progress | None) -> FillModule:
    """Return a function that fills the modules of a quantized model from a plain checkpoint."""
    wanted, stored = source.stored_tensors(source.build_empty())
    total = sum(tensor.nbytes for tensor in stored.values())
    done = 0
    of_module: dict[str, list[Place]] = {}
    for place in wanted:
        of_module.setdefault(place.parameter.rpartition(".")[0], []).append(place)

    def fill_module(model: VL2, name: str) -> None:
        nonlocal done
        mine = of_module[name]
        fill(mine, stored, lambda place, tensor: put(model, place, tensor), None)
        done += sum(stored[place.name].nbytes for place in mine)
        if progress is not None:
            progress(done, total)

    return fill_module


def _is_beside(file: Path) -> bool:
    is_ours = file.name == CONFIG or file.name.endswith(".index.json")
    return file.is_file() and file.suffix in BESIDE and not is_ours


def _check_room(out: Path, nbytes: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if nbytes + HEADERS_BYTES > free:
        raise UserError(f"{out} needs {nbytes / 1e9:.2f} GB, and {parent} has {free / 1e9:.2f} GB free")
