"""Our texts of the protocol `vlmevalkit` are those of the installed harness, written by its adapter for this model."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.eval.fixtures import png, tsv
from vl2.eval.run_task import prompt_text
from vl2.eval.task import DataSource
from vl2.eval.task_catalog import find_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vlmeval") is None, reason="VLMEvalKit is not installed"),
]

CHOICES = {"A": "left", "B": "right", "answer": "B", "category": "place", "l2-category": "place"}
BOX = {"split": "RefCOCO_val", "width": 60, "height": 40, "bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 3, "bbox_y2": 4}
VISTA = {
    "answer": "3",
    "question_type": "free_form",
    "answer_type": "integer",
    "choices": "",
    "task": "x",
    "skills": "[]",
}

# our task, their class, their data set, a row
ROWS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("docvqa", "image_vqa.ImageVQADataset", "DocVQA_VAL", {"answer": "['x']"}),
    ("infovqa", "image_vqa.ImageVQADataset", "InfoVQA_VAL", {"answer": "['x']"}),
    ("chartqa", "image_vqa.ImageVQADataset", "ChartQA_TEST", {"answer": "x", "split": "test_human"}),
    ("textvqa", "image_vqa.ImageVQADataset", "TextVQA_VAL", {"answer": "['x']"}),
    ("ocrbench", "image_vqa.OCRBench", "OCRBench", {"answer": "['x']", "category": "Digit String Recognition"}),
    ("mathvista", "image_vqa.MathVista", "MathVista_MINI", VISTA),
    ("mmstar", "image_mcq.ImageMCQDataset", "MMStar", CHOICES),
    ("ai2d", "image_mcq.ImageMCQDataset", "AI2D_TEST", CHOICES),
    ("mmbench_en", "image_mcq.ImageMCQDataset", "MMBench_DEV_EN", {**CHOICES, "hint": "Look.", "split": "dev"}),
    ("mmbench_cn", "image_mcq.ImageMCQDataset", "MMBench_DEV_CN", {**CHOICES, "hint": "", "split": "dev"}),
    ("mmt_bench", "image_mcq.ImageMCQDataset", "MMT-Bench_VAL", CHOICES),
    ("realworldqa", "image_mcq.ImageMCQDataset", "RealWorldQA", CHOICES),
    ("mmmu", "image_mcq.MMMUDataset", "MMMU_DEV_VAL", {**CHOICES, "split": "validation"}),
    ("mme", "image_yorn.ImageYORNDataset", "MME", {"answer": "Yes", "category": "existence", "image_path": "1.png"}),
    ("pope", "image_yorn.ImageYORNDataset", "POPE", {"answer": "yes", "category": "random"}),
    ("refcoco_val", "refcoco.RefCOCODataset", "RefCOCO", {**BOX, "answer": "[1, 2, 3, 4]"}),
]


@pytest.mark.parametrize(("name", "kind", "dataset", "row"), ROWS, ids=[name for name, *_ in ROWS])
def test_the_text_is_that_of_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, dataset: str, row: dict[str, Any]
) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    from vl2.eval.harness.vlmevalkit import released_turn

    module, _, class_name = kind.partition(".")
    try:
        made = getattr(importlib.import_module(f"vlmeval.dataset.{module}"), class_name)
    except ModuleNotFoundError as missing:
        pytest.skip(f"this version has no {missing.name}")
    question = "Which <image 1> is the Dog? " if name == "mmmu" else "Where is the Dog?"
    tsv(tmp_path / f"{dataset}.tsv", [{"index": 1, "image": png(), "question": question, **row}])
    (item,) = find_task(name).items(DataSource(data=tmp_path))
    ours = find_task(name).protocol("vlmevalkit")[1].ask(item)

    monkeypatch.setattr(made, "DATASET_MD5", {})
    data = made(dataset)
    theirs = released_turn({"role": "user", "content": data.build_prompt(0)}, dataset)
    assert prompt_text(ours).removeprefix("user: ") == prompt_text([theirs]).removeprefix("user: ")
