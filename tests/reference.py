"""The golden outputs of the released implementation, and our models loaded from its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vl2.grid import UNTILED
from vl2.infer.vlm import VLM, load
from vl2.process.decode import RELEASED_OPTIONS
from vl2.process.sample import Sample

REFERENCE = Path(__file__).parent / "golden" / "reference"
CHECKPOINTS = REFERENCE / "checkpoints"
IMAGES = REFERENCE / "images"
SIZES = ("tiny", "small", "base")

# The goldens were recorded with Pillow 13, which scales a tall image down in height first. Older versions begin with
# the width, which changes pixels at sharp edges by up to 8 of 255. Of the golden images this concerns one.
SCALED_OTHERWISE_BEFORE_PILLOW_13 = "tall300x900"
HAS_OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13


@cache
def model_goldens(size: str) -> dict[str, Any]:
    return json.loads((REFERENCE / "model" / f"{size}.json").read_text(encoding="utf-8"))


CASES = [(size, case) for size in SIZES for case in model_goldens(size)["cases"]]


def case_of(size: str, case: str) -> dict[str, Any]:
    return model_goldens(size)["cases"][case]


@cache
def tensors_of(size: str, case: str) -> dict[str, Tensor]:
    return load_file(REFERENCE / "model" / size / f"{case}.safetensors")


@cache
def reference_vlm(size: str) -> VLM:
    """The model of a golden checkpoint, reading images exactly as the released code does."""
    return load(CHECKPOINTS / size, device="cpu", image_options=RELEASED_OPTIONS)


def messages_of(size: str, case: str) -> list[dict[str, Any]]:
    messages = case_of(size, case)["messages"]
    if has_other_pixels(image for m in messages for image in m.get("images", ())):
        pytest.skip("Pillow 13 scaled the golden's tall image in another order")
    return [
        {**m, "images": [str(REFERENCE / image) for image in m["images"]]} if m.get("images") else m for m in messages
    ]


def has_other_pixels(images: Iterable[str]) -> bool:
    """Tell whether this Pillow scales one of the images otherwise than the goldens' did."""
    return HAS_OLD_PILLOW and any(SCALED_OTHERWISE_BEFORE_PILLOW_13 in str(image) for image in images)


def sample_of(size: str, case: str) -> Sample:
    return reference_vlm(size).processor.encode(messages_of(size, case), name=f"{size}/{case}")


def released_tiles(sample: Sample) -> list[int]:
    """For each tile as the released code stacks them, the index of ours: it encodes the tile of a 1 x 1 grid twice."""
    order, first = [], 0
    for columns, rows in sample.grids.tolist():
        count = 1 if (columns, rows) == UNTILED else 1 + columns * rows
        order += [first, first] if (columns, rows) == UNTILED else list(range(first, first + count))
        first += count
    return order


@contextmanager
def recorded(**modules: nn.Module) -> Iterator[dict[str, Any]]:
    """Collect the latest output of each module while the block runs."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def assert_near(ours: Tensor, golden: Tensor, atol: float = 1e-4) -> None:
    """Compare with the released float32 values. It differs from itself by up to 2.2e-5, cached against uncached."""
    torch.testing.assert_close(ours.float(), golden.float(), atol=atol, rtol=1e-4)
