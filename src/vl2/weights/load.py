"""Load a checkpoint folder: built on the meta device, then filled tensor by tensor. Strict, safetensors only.

Golden: tests/golden/reference/checkpoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from vl2.config import ModelConfig
from vl2.errors import UserError, memory_errors
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.weights.huge_pages import prefer_huge_pages
from vl2.weights.in_place import InPlace
from vl2.weights.names import Place, places
from vl2.weights.safetensors_file import StoredTensor, read_header, read_into

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
NAMES_SHOWN = 5
LARGE_BYTES = 128 << 20
QUANTIZED = "quantization_config"  # the key of config.json that says how weights are quantised
# Two readers already saturate a disk; the time goes into page faults on the fresh memory.
NUM_READERS = min(4, os.cpu_count() or 1)

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    only_answers: bool = False,
) -> VL2:
    """Return the model of a checkpoint folder in evaluation mode. `dtype` None keeps the configured one.

    A model that `only_answers`, from files that stay as they are, may leave weights in them: `vl2.weights.in_place`.

    UserError names the tensors that are missing, not expected or of another shape.
    """
    config = ModelConfig.from_file(folder / "config.json")
    if QUANTIZED in config.source:
        raise UserError(f"{folder} holds quantised weights, which can only answer: vl2.load and the commands take it")
    model = build_empty(config)
    stored = stored_tensors(folder)
    wanted = list(places(model))
    check_tensors({place.name: shape_of(model, place) for place in wanted}, stored, folder)
    dtype, device = dtype or getattr(torch, config.torch_dtype), torch.device(device)
    in_place = InPlace(stored, dtype)
    if only_answers and device.type == "cpu":
        in_place.leave(model)
    with memory_errors(f"the weights of {folder}"):
        materialize(model, dtype, device)
    state = model.state_dict()

    def put(place: Place, tensor: StoredTensor) -> None:
        if not in_place.brings(place.name):
            read_into(place.view(state[place.parameter]), tensor)

    fill(wanted, stored, put, progress)
    in_place.mlock()
    return model.eval()


def build_empty(config: ModelConfig) -> VL2:
    """Return a model on the meta device: shapes without memory."""
    with shapes_only():
        return VL2(config)


def shape_of(model: VL2, place: Place) -> tuple[int, ...]:
    """Return the shape that a released tensor of this model has."""
    owner, _, leaf = place.parameter.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tuple(place.view(tensor).shape)


def materialize(model: VL2, dtype: torch.dtype, device: torch.device) -> None:
    """Give what is on the meta device uninitialised memory. In place; the expert bias stays float32."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                continue
            fresh = torch.empty(parameter.shape, dtype=dtype, device=device)
            prefer_huge_pages(fresh)
            setattr(module, name, nn.Parameter(fresh, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            held = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            prefer_huge_pages(held)
            setattr(module, name, held)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a folder by its released name."""
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise UserError(f"{name} is stored twice, in {tensors[name].path.name} and {file.name}")
            tensors[name] = tensor
    return tensors


def _weight_files(folder: Path) -> list[Path]:
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
    if shards:  # without their index; a shard that is missing shows as missing tensors
        return shards
    pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLED]
    if pickled:
        raise UserError(f"{folder} holds {_some(pickled)}, which can run code when read: only safetensors are loaded")
    raise UserError(f"no {SINGLE} or {INDEX} in {folder}")


def check_tensors(expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Raise UserError unless a folder holds exactly the tensors expected, by name and shape."""
    missing = [name for name in expected if name not in stored]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors: {_some(missing)}")
    extra = sorted(stored.keys() - expected.keys())
    if extra:
        raise UserError(f"{folder} holds {len(extra)} tensors that config.json does not describe: {_some(extra)}")
    wrong = [
        f"{name} is {list(stored[name].shape)}, config.json says {list(shape)}"
        for name, shape in expected.items()
        if stored[name].shape != shape
    ]
    if wrong:
        raise UserError(f"{folder} holds {len(wrong)} tensors of another shape: {_some(wrong)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def fill(
    wanted: Sequence[Place],
    stored: Mapping[str, StoredTensor],
    put: Callable[[Place, StoredTensor], None],
    progress: Progress | None,
) -> None:
    """Put every released tensor where it belongs, several at a time."""

    # In the order of the files, so that the disk reads ahead. The largest before all others: to be cast or quantised
    # they are held twice for a moment, and little else is in memory then.
    def rank(place: Place) -> tuple[bool, Path, int]:
        tensor = stored[place.name]
        return tensor.nbytes < LARGE_BYTES, tensor.path, tensor.offset

    wanted = sorted(wanted, key=rank)
    total = sum(stored[place.name].nbytes for place in wanted)

    def put_one(place: Place) -> int:
        put(place, stored[place.name])
        return stored[place.name].nbytes

    with ThreadPoolExecutor(NUM_READERS) as readers:
        done = 0
        for nbytes in readers.map(put_one, wanted):
            done += nbytes
            if progress is not None:
                progress(done, total)
