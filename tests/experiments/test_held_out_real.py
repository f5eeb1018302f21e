"""Held-out tasks on pictures of others take what the split keeps from training, and nothing else."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from experiments.nano import splits
from experiments.nano.draw.naming import _photographs
from experiments.nano.held_out import real_tasks
from experiments.nano.inputs.photographs import PHOTOGRAPHS
from vl2.eval.task import DataSource, Item, LeftOut, Task


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> DataSource:
    (folder / name).mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / name / "train-00000-of-00001.parquet")
    return DataSource(data=folder)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read(task: Task, source: DataSource) -> tuple[list[Item], int]:
    found = list(task.read(task, source))
    return [item for item in found if isinstance(item, Item)], sum(isinstance(item, LeftOut) for item in found)


def test_scenes_of_training_are_not_asked_about(tmp_path: Path) -> None:
    image = png(Image.new("RGB", (40, 10)))
    rows = [
        {"id": f"{group}-0-{n}", "group": group, "image": image, "sentence": f"there is {group}", "label": n == 0}
        for group in range(60)
        for n in range(2)
    ]
    items, left_out = read(real_tasks.NLVR, write(tmp_path, "nlvr", rows))
    groups = {group for group in range(60) if splits.is_test_scene(group)}
    assert 4 < len(groups) < 24
    assert {int(item.cluster) for item in items} == groups
    assert (len(items), left_out) == (2 * len(groups), 120 - 2 * len(groups))
    for item in items:
        assert f"there is {item.cluster}" in item.question
        assert item.gold == ("yes" if item.id.endswith("-0") else "no")


def receipt(n: int) -> dict[str, Any]:
    image = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(image).rectangle((20, 30, 80, 49), fill="red")
    lines = [
        {"text": "RED BOX", "x0": 20.0, "y0": 30.0, "x1": 80.0, "y1": 49.0},
        {"text": "TOO LOW", "x0": 20.0, "y0": 60.0, "x1": 80.0, "y1": 66.0},
        {"text": "***", "x0": 20.0, "y0": 70.0, "x1": 80.0, "y1": 90.0},
    ]
    return {"id": f"{n:03d}", "image": png(image), "lines": lines, "company": f"Shop {n}", "date": "1/2/2018",
            "total": "RM 34.80"}  # fmt: skip


def test_receipts_of_shops_of_training_are_not_asked_about(tmp_path: Path) -> None:
    source = write(tmp_path, "sroie", [receipt(n) for n in range(40)])
    shops = {f"Shop {n}" for n in range(40) if splits.is_test_shop(f"Shop {n}")}
    assert 2 < len(shops) < 18
    lines, left_out = read(real_tasks.RECEIPT_LINES, source)
    assert {item.cluster for item in lines} == shops
    assert left_out == 40 - len(shops)
    fields, _ = read(real_tasks.RECEIPT_FIELDS, source)
    assert {(item.part, item.gold) for item in fields} == {("total", "34.80"), ("date", "1/2/2018")}
    assert {item.cluster for item in fields} == shops


def test_a_line_is_cut_out_with_its_surroundings(tmp_path: Path) -> None:
    lines, _ = read(real_tasks.RECEIPT_LINES, write(tmp_path, "sroie", [receipt(n) for n in range(20)]))
    for item in lines:  # lines that are too low, or without letters and digits, are not asked
        assert item.gold == "RED BOX"
        cut = Image.open(io.BytesIO(item.images[0])).convert("RGB")
        assert cut.size == (70, 23)
        assert cut.getpixel((35, 11)) == (255, 0, 0)
        assert cut.getpixel((1, 1)) == (255, 255, 255)


def test_photographs_of_training_are_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_tasks, "_package_photos", tuple)
    rows = [{"id": f"photo-{n}", "source": "cards", "image": png(Image.new("RGB", (9, 9)))} for n in range(40)]
    items, _ = read(real_tasks.PHOTOS, write(tmp_path, "photos", rows))
    assert items
    assert all(splits.is_test_photo(item.cluster) for item in items)
    again, _ = read(real_tasks.PHOTOS, DataSource(data=tmp_path))
    assert [item.question for item in again] == [item.question for item in items]


def test_photographs_of_packages_that_training_shows_are_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    for file in PHOTOGRAPHS:
        (tmp_path / file).touch()
    (tmp_path / "names.json").write_text(json.dumps(PHOTOGRAPHS))
    package = types.ModuleType("skimage.data")
    package.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "skimage", types.ModuleType("skimage"))
    monkeypatch.setitem(sys.modules, "skimage.data", package)
    monkeypatch.setattr(sys.modules["skimage"], "data", package, raising=False)
    asked = {path.name for path in real_tasks._package_photos.__wrapped__()}
    shown = set(_photographs(str(tmp_path)))
    assert asked & set(PHOTOGRAPHS)
    assert shown | asked >= {"astronaut.png", "grass.png", "motorcycle_left.png"}
    assert asked.isdisjoint(shown)


def test_the_demo_is_asked_in_other_words_with_what_its_pictures_show() -> None:
    items, _ = read(real_tasks.DEMO, DataSource())
    by_question = {item.question: item.gold for item in items}
    assert by_question["What does the bill come to?"] == "7.95"  # 3.20, 2.90 and 1.85
    assert by_question["How much is Lisbon?"] == "62"
    assert by_question["What word is this?"] == "Station"
    assert by_question["blue stars: how many?"] == "3"
    assert by_question["Can a yellow circle be seen here?"] == "No"
    assert len(items) >= 40
