"""Full-size checkpoints with random weights, written file by file: for speed and memory, not for answers.

Names, shapes and files are those of the released checkpoints; the tokenizer is the built-in model's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch

from vl2.config import ModelConfig, preset
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.weights.load import INDEX
from vl2.weights.locate import built_in_folder
from vl2.weights.names import places

SHARD_BYTES = 2_000_000_000
DEVIATION = 0.02
Shapes = dict[str, torch.Size]


def shards(size: str) -> list[Shapes]:
    """Return the names and shapes of one file after another."""
    with shapes_only():
        model = VL2(preset(size))
    state = model.state_dict()
    files: list[Shapes] = [{}]
    held = 0
    for place in places(model):
        shape = place.view(state[place.parameter]).shape
        if files[-1] and held + 2 * shape.numel() > SHARD_BYTES:
            files.append({})
            held = 0
        files[-1][place.name] = shape
        held += 2 * shape.numel()
    return files


def write_random_checkpoint(
    size: str, folder: Path, seed: int = 0, *, say: Callable[[str], None] = lambda file: None
) -> None:
    """Write a checkpoint of a released size in bfloat16. Matrices are normal, norms are ones. The folder must be new.

    `say` is told each file that is finished. UserError where the disk has no room for it.
    """
    from safetensors.torch import save

    files = shards(size)
    total = sum(2 * shape.numel() for file in files for shape in file.values())
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    free = shutil.disk_usage(folder).free
    if free < total:
        raise UserError(
            f"{size} needs {total / 1e9:.1f} GB on the disk of {folder}, which has {free / 1e9:.1f} GB left"
        )
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {tensor: random_values(tensor, shape, generator) for tensor, shape in shapes.items()}
        # In one piece, as a download comes in some of 10 MB: so the system may hold the file in huge pages.
        (folder / name).write_bytes(save(tensors, metadata={"format": "pt"}))
        weight_map.update(dict.fromkeys(shapes, name))
        say(name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(preset(size).to_dict(), indent=2))
    processor = built_in_folder() if size == "nano" else Path(str(resources.files("vl2") / "presets"))
    shutil.copy(processor / "processor_config.json", folder)
    shutil.copy(built_in_folder() / "tokenizer.json", folder)


def random_values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return what a random checkpoint holds under a name, in bfloat16."""
    if len(shape) == 1 and name.endswith(".weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape).normal_(0, DEVIATION, generator=generator).to(torch.bfloat16)


@contextmanager
def random_checkpoint(size: str, folder: Path | None) -> Iterator[Path]:
    """Give a folder with a random checkpoint: `folder`, made if need be and kept, or one that is deleted afterwards.

    UserError if the folder holds a checkpoint of another size.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=f"vl2-random-{size}-") as temporary:
            write_random_checkpoint(size, Path(temporary))
            yield Path(temporary)
        return
    if not (folder / "config.json").is_file():
        write_random_checkpoint(size, folder)
    if ModelConfig.from_file(folder / "config.json") != preset(size):
        raise UserError(f"{folder} holds a checkpoint that is not of the size {size}: name another folder")
    yield folder
