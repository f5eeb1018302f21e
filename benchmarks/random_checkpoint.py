"""Write a full-size checkpoint with random weights, shard by shard: for speed and memory, not for answers.

    python benchmarks/random_checkpoint.py tiny /data/tiny-random      # 6.7 GB; small 32.3 GB, base 55.0 GB

Names, shapes and files are those of the released checkpoints; the tokenizer is the built-in model's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import save_file

from vl2.config import PRESETS, preset
from vl2.model import VL2
from vl2.weights.load import INDEX
from vl2.weights.locate import built_in_folder
from vl2.weights.names import places

SHARD_BYTES = 2_000_000_000


def shards(size: str) -> Iterator[dict[str, torch.Size]]:
    """Yield the names and shapes of one file after another."""
    with torch.device("meta"):
        model = VL2(preset(size))
    state = model.state_dict()
    shard: dict[str, torch.Size] = {}
    held = 0
    for place in places(model):
        shape = place.view(state[place.parameter]).shape
        if shard and held + 2 * shape.numel() > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[place.name] = shape
        held += 2 * shape.numel()
    yield shard


def write(size: str, folder: Path, seed: int = 0) -> None:
    """Write the checkpoint. Matrices are normal with deviation 0.02, norms are ones."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    groups = list(shards(size))
    weight_map = {}
    for number, shard in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name, shape in shard.items():
            is_norm = len(shape) == 1 and name.endswith(".weight")
            values = torch.ones(shape) if is_norm else torch.empty(shape).normal_(0, 0.02, generator=generator)
            tensors[name] = values.to(torch.bfloat16)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        print(file, flush=True)
    total = sum(2 * shape.numel() for shard in groups for shape in shard.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(preset(size).to_dict(), indent=2))
    processor = built_in_folder() if size == "nano" else Path(str(resources.files("vl2") / "presets"))
    shutil.copy(processor / "processor_config.json", folder)
    shutil.copy(built_in_folder() / "tokenizer.json", folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.size, arguments.folder, arguments.seed)
