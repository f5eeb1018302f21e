"""Save a model in the released layout: config.json and sharded safetensors under the released names.

The folder appears whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from vl2.config import Json
from vl2.model import VL2
from vl2.weights.load import INDEX, SINGLE
from vl2.weights.names import places
from vl2.weights.new_folder import new_folder, write_json

MAX_SHARD_BYTES = 5_000_000_000


def save_model(
    model: VL2,
    folder: Path,
    *,
    extra_files: Sequence[Path] = (),
    extra_json: dict[str, Json] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the model to a new folder, with copies of `extra_files` (tokenizer) and `extra_json` by file name.

    UserError if the folder exists and is not empty: nothing is overwritten.
    """
    with new_folder(folder) as partial:
        _write_weights(model, partial, max_shard_bytes)
        dtype = str(model.dtype).removeprefix("torch.")
        config = model.config.to_dict()
        if config.get("torch_dtype", dtype) != dtype:
            config["torch_dtype"] = dtype
        for name, content in {"config.json": config, **(extra_json or {})}.items():
            write_json(partial / name, content)
        for file in extra_files:
            shutil.copyfile(file, partial / file.name)


def _write_weights(model: VL2, folder: Path, max_shard_bytes: int) -> None:
    shards = list(_shards(model, max_shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # The parts of a stacked parameter share its memory; the library wants tensors of their own.
        save_file({name: t.contiguous().clone() for name, t in shard}, folder / file, metadata={"format": "pt"})
        weight_map.update((name, file) for name, _ in shard)
        total += sum(_nbytes(t) for _, t in shard)
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(model: VL2, max_shard_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    state = model.state_dict()
    shard: list[tuple[str, Tensor]] = []
    held = 0
    for place in places(model):
        tensor = place.view(state[place.parameter]).detach()
        if shard and held + _nbytes(tensor) > max_shard_bytes:
            yield shard
            shard, held = [], 0
        shard.append((place.name, tensor))
        held += _nbytes(tensor)
    yield shard


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
