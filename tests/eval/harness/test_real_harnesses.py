"""The real harnesses run this model on five questions and give the scores of our own command.

They are large and not in the development environment: each test runs where its harness is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eval.harness.five_questions import write_parquet, write_tsv
from vl2.eval.run_task import EvalOptions, run_task
from vl2.eval.task import DataSource, Result
from vl2.eval.task_catalog import find_task
from vl2.infer.vlm import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TOKENS = 12
TASK_YAML = """task: five_questions
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.chartqa_doc_to_visual
doc_to_text: !function utils.chartqa_doc_to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, do_sample: false}}
process_results: !function utils.chartqa_process_results
metric_list:
  - {{metric: relaxed_overall, aggregation: mean, higher_is_better: true}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: "\\nAnswer the question using a single word or phrase."}}
"""
REGISTERED = """[lmms_eval.models]
vl2 = vl2.eval.harness.lmms_eval:manifest
"""


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def ours(folder: Path, golds: list[str]) -> list[Result]:
    """Run our own command's code on the five questions."""
    data = folder / "data"
    data.mkdir(parents=True)
    write_parquet(data, golds)
    options = EvalOptions(protocol="vlmevalkit", max_new_tokens=TOKENS, batch_size=3, quiet=True)
    return run_task(load("nano"), find_task("chartqa"), DataSource(data=data), folder / "out", options, model="nano")


@pytest.fixture(scope="module")
def golds(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return gold answers of which the model gives three: with none right, equal scores would say nothing."""
    said = [r.answer for r in ours(tmp_path_factory.mktemp("first"), ["?"] * 5)]
    return [said[0], "14", said[2], said[3].upper(), "Yes"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, golds: list[str]) -> list[float]:
    scores = [r.score for r in ours(tmp_path_factory.mktemp("second"), golds)]
    assert 0 < sum(scores) < 5
    return scores


@pytest.mark.skipif(not is_installed("lmms_eval"), reason="lmms-eval is not installed")
@pytest.mark.parametrize("form", ["chat", "simple"])
def test_lmms_eval_gives_our_scores(tmp_path: Path, golds: list[str], expected: list[float], form: str) -> None:
    file = write_parquet(tmp_path, golds)
    task = tmp_path / "tasks" / "five_questions"
    task.mkdir(parents=True)
    (task / "five_questions.yaml").write_text(TASK_YAML.format(file=file, tokens=TOKENS), encoding="utf-8")
    (task / "utils.py").write_text("from lmms_eval.tasks.chartqa.utils import *\n", encoding="utf-8")
    # The entry point of an installed vl2, also where the tests run from the sources.
    info = tmp_path / "plugin" / "vl2_plugin-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vl2-plugin\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(REGISTERED, encoding="utf-8")
    command = [sys.executable, "-m", "lmms_eval", "--model", "vl2", "--model_args", "pretrained=nano"]
    command += ["--tasks", "five_questions", "--include_path", str(task.parent), "--batch_size", "2"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    command += ["--force_simple"] if form == "simple" else []
    paths = os.pathsep.join((str(ROOT / "src"), str(info.parent)))
    run_offline(command, {"PYTHONPATH": paths, "HF_HOME": str(tmp_path / "hf")})
    (log,) = (tmp_path / "out").rglob("*_samples_five_questions.jsonl")
    samples = sorted(map(json.loads, log.read_text(encoding="utf-8").splitlines()), key=lambda s: s["doc_id"])
    assert [float(sample["relaxed_overall"]) for sample in samples] == expected


@pytest.mark.skipif(not is_installed("vlmeval"), reason="VLMEvalKit is not installed")
def test_vlmevalkit_gives_our_scores(tmp_path: Path, golds: list[str], expected: list[float]) -> None:
    write_tsv(tmp_path / "ChartQA_TEST.tsv", golds)
    program = (
        "import json\n"
        "from functools import partial\n"
        "from vlmeval.config import supported_VLM\n"
        "from vlmeval.dataset.image_vqa import ImageVQADataset\n"
        "from vlmeval.dataset.utils.vqa_eval import hit_calculate, process_line\n"
        "from vlmeval.inference import infer_data_job\n"
        "from vlmeval.smp import load\n"
        "from vl2.eval.harness.vlmevalkit import VL2ForVLMEvalKit\n"
        "ImageVQADataset.DATASET_MD5 = {}\n"
        f"supported_VLM['vl2-nano'] = partial(VL2ForVLMEvalKit, 'nano', max_new_tokens={TOKENS})\n"
        "data = ImageVQADataset('ChartQA_TEST')\n"
        "infer_data_job('vl2-nano', work_dir='.', model_name='vl2-nano', dataset=data)\n"
        "file = 'vl2-nano_ChartQA_TEST.tsv'\n"
        "lines = [process_line(row, method='relaxed_accuracy') for _, row in load(file).iterrows()]\n"
        "print('SCORES', json.dumps([float(hit) for hit in hit_calculate(lines, 'ChartQA_TEST')]))\n"
        "print('OVERALL', float(data.evaluate(file)['Overall'].iloc[0]))\n"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "LMUData": str(tmp_path), "PRED_FORMAT": "tsv"}
    out = run_offline([sys.executable, "-c", program], environment, folder=tmp_path)
    said = dict(line.split(" ", 1) for line in out.splitlines() if line.startswith(("SCORES", "OVERALL")))
    assert json.loads(said["SCORES"]) == expected
    assert float(said["OVERALL"]) == pytest.approx(100 * sum(expected) / 5)


def run_offline(command: list[str], environment: dict[str, str], folder: Path | None = None) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder or ROOT, env={**os.environ, **offline, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
