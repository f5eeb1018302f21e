"""What the pictures in examples/ show, from the values that `tools/draw_examples.py` draws."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
Box = tuple[float, float, float, float]


@cache
def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_examples", ROOT / "tools" / "draw_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right_answer(picture: str, question: str) -> str:
    """Return the right answer to a question about a picture, such as "bars"."""
    return {(name, asked): answer for name, asked, answer in drawing().questions()}[picture, question]


def right_boxes(picture: str, query: str) -> list[Box]:
    """Return where the thing is drawn, in pixels, left to right."""
    return {(name, asked): boxes for name, asked, boxes in drawing().boxes()}[picture, query]
