"""The goldens of the DeepSeek-OCR family, and our model with the weights that they were recorded with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.ocr.cases import Case, picture
from tests.reference import HAS_OLD_PILLOW
from vl2.checkpoint.toy_checkpoint import toy_config, write_toy_checkpoint
from vl2.infer.vlm import VLM, load
from vl2.process.decode import RELEASED_OPTIONS
from vl2.process.sample import Sample

FOLDER = Path(__file__).parents[1] / "golden" / "ocr"


@cache
def toy_goldens() -> dict[str, Any]:
    return json.loads((FOLDER / "toy.json").read_text(encoding="utf-8"))


@cache
def golden_cases() -> dict[str, Any]:
    """Return what was recorded of each picture of CASES and CASES_2, by its name."""
    ocr_2 = json.loads((FOLDER / "toy_2.json").read_text(encoding="utf-8"))
    return {**toy_goldens()["cases"], **ocr_2["cases"]}


@cache
def toy_tensors() -> dict[str, Tensor]:
    return {**load_file(FOLDER / "toy.safetensors"), **load_file(FOLDER / "toy_2.safetensors")}


@cache
def page_grids(file: str = "page_grids.json") -> dict[str, str]:
    return json.loads((FOLDER / file).read_text(encoding="utf-8"))


SMALLEST_MODE = {"deepseek-ocr": "tiny", "unlimited-ocr": "tiny", "deepseek-ocr-2": "small"}
both_encoders = pytest.mark.parametrize("name", ["deepseek-ocr", "deepseek-ocr-2"])
_FOLDERS = TemporaryDirectory(prefix="vl2-ocr-toys-")


def toy_folder(kind: str = "deepseek-ocr") -> Path:
    """Return the folder of a toy, written once."""
    folder = Path(_FOLDERS.name) / kind
    if not folder.exists():
        write_toy_checkpoint(folder, toy_config(kind))
    return folder


@cache
def toy_vlm(mode: str = "paper", kind: str = "deepseek-ocr") -> VLM:
    """Return a toy in a mode, reading pictures exactly as the released code does."""
    return load(toy_folder(kind), device="cpu", tiling=mode, image_options=RELEASED_OPTIONS)


def sample_of(case: Case, kind: str | None = None) -> Sample:
    """Return a case as our processor makes it; skips where this Pillow scales tall pictures in another order.

    `kind` is the toy whose processor is used; None is the case's own.
    """
    width, height = case.size
    if HAS_OLD_PILLOW and height > width:
        pytest.skip("Pillow 13 scaled the golden's tall picture in another order")
    return toy_vlm(case.mode, kind or case.kind).processor.encode_prompt(f"<image>\n{case.prompt}", [picture(case)])


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def expand(digits: str) -> Iterator[tuple[int, int]]:
    """Yield the grids that two digits each in base 36 stand for."""
    numbers = [int(digit, 36) for digit in digits]
    yield from zip(numbers[::2], numbers[1::2], strict=True)
