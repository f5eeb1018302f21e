"""The one function that reads any set: settings that do not fit are errors at once."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.layouts import FIXTURES, SIZE, layout
from vl2.data.record import CATEGORIES, Record
from vl2.datasets import CATALOG, convert
from vl2.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vqa2", {}, "no dataset is called 'vqa2': did you mean vqav2?"),
        ("gqa", {}, "is not in the layout: it has no train_questions.json"),
        ("gqa", {"negatives": 0.5}, "gqa does not say what is absent from an image"),
        ("coco", {"negatives": 2}, "negatives must be in 0..1, got 2"),
        ("gqa", {"language": "zh"}, "gqa is available in en, got 'zh'"),
        ("coco", {"language": "zh"}, "names_zh.json must hold the names of labels"),
        ("gqa", {"draw": lambda table: b""}, "gqa has no tables to draw"),
        ("ai2d", {"split": "dev"}, "it has no questions/*.json"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_read(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        convert(name, tmp_path, **settings)


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        convert("coco", tmp_path / "nothing")


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_every_set_refuses_an_empty_folder_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        list(convert(name, tmp_path))
    assert "\n" not in str(caught.value)


JUNK = (None, -1, 10**9, float("nan"), "", "x", "../x", [], {}, [None], {"bytes": "x"}, True)


def spoil(value: Any, rng: random.Random) -> Any:
    """Replace a few of the values in a JSON tree, at any depth, by something else."""
    if rng.random() < 0.04:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        return {key: spoil(child, rng) for key, child in value.items() if rng.random() > 0.01}
    return [spoil(child, rng) for child in value] if isinstance(value, list) else value


def spoil_file(path: Path, text: str, rng: random.Random) -> None:
    """Write a file of JSON, or of JSON lines, with some of its values replaced."""
    try:
        spoilt = [json.dumps(spoil(json.loads(text), rng))]
    except json.JSONDecodeError:
        lines = [line for line in text.splitlines() if line.endswith("}")]
        spoilt = [json.dumps(spoil(json.loads(line), rng)) for line in lines]
    path.write_text("\n".join(spoilt), encoding="utf-8")


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.iterdir()))
def test_files_of_any_shape_give_records_problems_or_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl2.data.raw_files.measure", lambda source, name: SIZE)  # as if all images were there
    source = {"sroie_task": "sroie"}.get(name, name)
    folder = layout(tmp_path, name)
    files = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.json*")}
    num_records = 0
    for seed in range(25):
        for path, text in files.items():
            spoil_file(path, text, random.Random(f"{name} {path.name} {seed}"))
        with contextlib.suppress(UserError):
            made = convert(source, folder, split="all" if name == "kvqa" else "train")
            num_records += sum(isinstance(each, Record) for each in made)
    # These need pages of PDF files, fetched images, or images of 150 px, which their fixtures do not hold.
    assert num_records or not files or name in ("fintabnet", "wanjuan", "wikihow")


def test_the_catalogue_and_the_page_name_the_same_sets() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`datasets/\w+\.py`: `([^|]+?)` \|", page))
    listed = {name for cell in named for name in re.split(r"`, `", cell)}
    assert listed == set(CATALOG)
    files = re.findall(r"`(?:src/vl2/)?((?:datasets|synth|curate/jobs|curate/filters)/\w+\.py)`", page)
    assert [file for file in files if not (ROOT / "src" / "vl2" / file).is_file()] == []
    assert {entry.category for entry in CATALOG.values()} <= set(CATEGORIES)
