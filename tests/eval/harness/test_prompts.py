"""Our texts of the protocol `lmms-eval` are those of the installed harness, for one document of every benchmark."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.eval.fixtures import cell, parquet
from vl2.eval.run_task import prompt_text
from vl2.eval.task import DataSource
from vl2.eval.task_catalog import find_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed"),
]

CHOICES = {"A": "left", "B": "right", "answer": "B", "index": 3, "category": "place"}
MMBENCH = {**CHOICES, "L2-category": "x", "source": "x", "split": "dev", "hint": "Look."}
VISTA = {"pid": "1", "choices": None, "unit": "cm", "precision": 1.0, "answer": "3.1", "question_type": "free_form"}

# our task, the file of theirs, where the hub has the rows, a row
DOCUMENTS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("docvqa", "docvqa/docvqa_val.yaml", "validation", {"questionId": "1", "answers": ["x"]}),
    ("infovqa", "infovqa/infovqa_val.yaml", "validation", {"questionId": "1", "answers": ["x"]}),
    ("chartqa", "chartqa/chartqa.yaml", "test", {"type": "human_test", "answer": "x"}),
    ("textvqa", "textvqa/textvqa_val.yaml", "validation", {"question_id": 1, "answers": ["x"] * 10}),
    ("ocrbench", "ocrbench/ocrbench.yaml", "test", {"dataset": "IIIT5K", "question_type": "x", "answer": ["x"]}),
    ("mmstar", "mmstar/mmstar.yaml", "val", {"index": 0, "answer": "B", "category": "x"}),
    ("ai2d", "ai2d/ai2d.yaml", "test", {"options": ["left", "right"], "answer": "1"}),
    ("mmmu", "mmmu/mmmu_val.yaml", "validation",
     {"id": "validation_Art_1", "options": "['left', 'right']", "answer": "B", "question_type": "multiple-choice"}),
    ("mmmu", "mmmu/mmmu_val.yaml", "validation",
     {"id": "validation_Art_1", "options": "[]", "answer": "B", "question_type": "open"}),
    ("mme", "mme/mme.yaml", "test", {"question_id": "a/1.png", "answer": "Yes", "category": "existence"}),
    ("mmbench_en", "mmbench/mmbench_en_dev.yaml", "dev", MMBENCH),
    ("mmbench_en", "mmbench/mmbench_en_dev.yaml", "dev", {**MMBENCH, "hint": "nan", "C": "up", "D": "nan"}),
    ("mmbench_cn", "mmbench/mmbench_cn_dev.yaml", "dev", MMBENCH),
    ("mmt_bench", "mmt/mmt_val.yaml", "val", CHOICES),
    ("realworldqa", "realworldqa/realworldqa.yaml", "test", {"answer": "B"}),
    ("mathvista", "mathvista/mathvista_testmini_format.yaml", "testmini", {**VISTA, "answer_type": "float"}),
    ("mathvista", "mathvista/mathvista_testmini_format.yaml", "testmini",
     {**VISTA, "unit": None, "precision": None, "answer_type": "text", "question_type": "multi_choice",
      "choices": ["1", "3.1"]}),
    ("refcoco_testA", "refcoco_grounding/refcoco_grounding_testA.yaml", "testA",
     {"question_id": "1", "answer": ["the dog"], "bbox": [1.0, 2.0, 3.0, 4.0]}),
    ("pope", "pope/pope.yaml", "test", {"id": "0", "answer": "yes", "category": "random"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "split", "row"), DOCUMENTS, ids=lambda value: str(value)[:40])
def test_the_text_is_that_of_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, split: str, row: dict[str, Any]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")  # a judge's client is made when its task is imported
    import lmms_eval
    from lmms_eval.utils import load_yaml_config

    question = "Is the Dog left? Please answer yes or no." if name == "mme" else "Where is the Dog? "
    given = {"question": question, **row}
    pictures = {"image_1" if name == "mmmu" else "decoded_image" if name == "mathvista" else "image": cell()}
    parquet(tmp_path / f"{split}-00000-of-00001.parquet", [{**given, "query": given["question"], **pictures}])
    (item,) = find_task(name).items(DataSource(data=tmp_path))
    ours = prompt_text(find_task(name).protocol("lmms-eval")[1].ask(item)).removeprefix("<image>\n")

    try:
        config = load_yaml_config(str(Path(lmms_eval.__file__).parent / "tasks" / file), mode="full")
    except ModuleNotFoundError as missing:
        pytest.skip(f"the harness's task needs {missing.name}, which it does not install")
    settings = config.get("lmms_eval_specific_kwargs", {}).get("default")
    theirs = config["doc_to_text"](given, settings) if settings is not None else config["doc_to_text"](given)
    assert ours == theirs.strip()
    limit = config.get("generation_kwargs", {}).get("max_new_tokens")
    assert limit is None or find_task(name).protocols["lmms-eval"].max_new_tokens == limit
