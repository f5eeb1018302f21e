"""The notebooks give the outputs that they keep, from a fresh kernel, and what they call right is what is drawn."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.drawn_examples import ROOT, drawing, right_answer

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# A cell with this tag prints speeds, or answers that another machine's rounding changes.
VARIES = "varies"


def runner() -> ModuleType:
    """Return tools/run_notebooks.py, or skip where what runs notebooks is not installed."""
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason="the packages of the `dev` extra that run notebooks are not installed")
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "tools" / "run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text(parts: str | list[str]) -> str:
    return parts if isinstance(parts, str) else "".join(parts)


def printed(name: str, part_of_source: str) -> str:
    """Return what is kept of the output of the one cell whose source has this part."""
    (cell,) = [cell for cell in code_cells(name) if part_of_source in text(cell["source"])]
    return "".join(text(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream").strip()


def picture(output: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text(output["data"]["image/png"])))).convert("RGB")


def assert_same_picture(kept: Image.Image, shown: Image.Image) -> None:
    """Letters may be smoothed otherwise by another release of Pillow (see tests/test_examples.py), and nothing else."""
    assert kept.size == shown.size
    change = np.abs(np.asarray(kept, np.float32) - np.asarray(shown, np.float32)).mean(2)
    assert np.lib.stride_tricks.sliding_window_view(change, (8, 8)).mean((2, 3)).max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_gives_the_outputs_that_it_keeps(notebook: Path, tmp_path: Path) -> None:
    shown = [cell for cell in runner().run(notebook, tmp_path).cells if cell.cell_type == "code"]
    kept = code_cells(notebook.stem)
    assert len(kept) == len(shown) > 0
    for old, new in zip(kept, shown, strict=True):
        assert text(old["source"]) == new.source
        if VARIES in old["metadata"].get("tags", ()):
            continue
        assert [output["output_type"] for output in old["outputs"]] == [output.output_type for output in new.outputs]
        for was, now in zip(old["outputs"], new.outputs, strict=True):
            if was["output_type"] == "stream":
                assert text(was["text"]) == now.text
            else:
                assert_same_picture(picture(was), picture(now))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_the_outputs_of_a_notebook_come_from_one_run_from_top_to_bottom(notebook: Path) -> None:
    cells = code_cells(notebook.stem)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])


def test_what_first_steps_calls_right_or_wrong_is_so() -> None:
    name, oslo = "first-steps", "What value does the chart show for Oslo?"
    assert printed(name, oslo) == right_answer("bars", oslo)
    assert printed(name, "图片上写着什么？") == right_answer("line", "图片上写着什么？")
    scene = ["How many blue stars are there?", "Is there a red heart?", "Is there a yellow circle?"]
    assert printed(name, "vlm.session()").splitlines() == [right_answer("scene", asked) for asked in scene]
    assert printed(name, "vlm.stream(").replace("|", "") == right_answer("word", "What does the image say?")
    bars = drawing().BARS
    said = dict(line.split() for line in printed(name, "vlm.batch(").splitlines())
    shown = dict(zip(bars.names, bars.values, strict=True))
    assert said == shown
    cents = sum(round(100 * float(price)) for _, _, price in drawing().ITEMS)
    tax = round(cents * 6 / 106)  # the prices include 6 %
    page = (ROOT / "docs" / "notebooks" / "first-steps.ipynb").read_text(encoding="utf-8")
    assert f"The total is {cents / 100:.2f}" in page
    assert printed(name, "What is the total?") == f"{(cents - tax) / 100:.2f}", "this is the subtotal"


def test_what_grounding_calls_right_or_wrong_is_so() -> None:
    name, drawn = "grounding", drawing().SCENE
    assert printed(name, '"blue star"') == f"boxes: {drawn.count('blue star')}"
    assert printed(name, '"red heart"') == f"boxes: {drawn.count('red heart') - 1}"
    assert printed(name, "How many red hearts") == str(drawn.count("red heart"))
    assert printed(name, "Is there a {thing}?").splitlines() == ["yellow circle No.", "green house Yes."]
    assert "yellow circle" not in drawn
    assert "green house" in drawn


def test_what_fine_tuning_calls_right_is_so() -> None:
    name = "fine-tune-in-five-minutes"
    right = {"red": "stop", "yellow": "wait", "green": "go"}
    after = printed(name, 'adapter="tuned/adapter"').splitlines()
    assert after == [f"{lit} -> {answer}" for lit, answer in right.items()]
    dark = printed(name, '"darkgreen"').splitlines()
    assert dark == [f"{lit} on {color} -> {right[lit]}" for color in ("black", "darkgreen") for lit in right]
    on_its_side = printed(name, "rotate(90)").splitlines()
    assert on_its_side == after
    assert "exact match      0.0% -> 100.0%" in printed(name, "%run -m vl2 finetune")
    drawn = [("bars", "What value does the chart show for Oslo?"), ("scene", "How many blue stars are there?"),
             ("word", "What does the image say?")]  # fmt: skip
    said = printed(name, "examples / ").splitlines()
    before, after_it = zip(*(line.split("? ")[1].split(" -> ") for line in said), strict=True)
    truth = [right_answer(of, asked) for of, asked in drawn]
    assert list(before) == truth
    assert list(after_it) == truth
