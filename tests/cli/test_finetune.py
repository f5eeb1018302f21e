"""`vl2 finetune` from the outside: what it says before it starts, what it leaves, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.datasets.own_folder import color_rows, write_csv
from tests.reference import CHECKPOINTS
from vl2.data.store import Problem, write_records
from vl2.datasets.own_data import read_own

ROOT = Path(__file__).parents[2]
MODEL = ("--model", CHECKPOINTS / "base")


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    folder = tmp_path / "colours"
    folder.mkdir()
    rows = [*color_rows(folder, 10), {"image": "images/none.png", "question": "What?", "answer": "x"}]
    write_csv(folder / "questions.csv", rows)
    return folder


def test_a_dry_run_says_what_would_be_trained_and_leaves_nothing(vl2, colors, tmp_path):
    ran = vl2("finetune", colors, "--out", tmp_path / "out", *MODEL, "--dry-run", "--json", "--method", "qlora")
    assert ran.code == 0
    planned = json.loads(ran.out)
    assert planned["data"]["num_train"] == 8
    assert planned["data"]["num_held_out"] == 2
    assert planned["steps"] == 30
    assert 0 < planned["size"]["trained"]["language"] < planned["size"]["parameters"]
    assert "none.png is not there" in ran.err
    assert "trained  qlora of rank 16 on attention, mlp, experts, projector, vision" in ran.err
    assert not (tmp_path / "out").exists()


def test_it_trains_reports_and_its_adapter_answers(vl2, colors, tmp_path):
    few = ("--steps", "2", "--batch-size", "4", "--rank", "4", "--held-out", "2", "--max-new-tokens", "4")
    ran = vl2("finetune", colors, "--out", tmp_path / "out", *MODEL, *few, "--device", "cpu", "--merge")
    assert ran.code == 0, ran.err
    lines = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert "->" in lines["loss"]
    assert lines["trained"] == str(tmp_path / "out" / "adapter")
    asked = ("ask", "What colour is the square?", "-i", colors / "images/0.png", "--max-new-tokens", "4", "--json")
    adapted = vl2(*asked, *MODEL, "--adapter", tmp_path / "out" / "adapter")
    merged = vl2(*asked, "--model", tmp_path / "out" / "merged")
    assert adapted.code == 0, adapted.err
    assert json.loads(adapted.out)["text"] == json.loads(merged.out)["text"]
    again = vl2("finetune", colors, "--out", tmp_path / "out", *MODEL, *few)
    assert (again.code, again.out) == (1, "")
    assert "resume it with --resume" in again.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "full", "--merge"], "--merge is for adapters"),
        (["--method", "full", "--rank", "4"], "--method full trains no adapter"),
        (["--method", "full", "--freeze", "vision", "projector", "language"], "nothing would be trained"),
        (["--rank", "0"], "rank must be at least 1"),
        (["--held-out", "-1"], "held-out must not be negative"),
        (["--seq-len", "8"], "seq-len must be in "),
        (["--epochs", "0"], "must be above 0"),
        (["--epochs", "inf"], "epochs must be a finite number, got inf"),
        (["--minutes", "inf"], "run.minutes must be a finite number, got inf"),
        (["--learning-rate", "0"], "learning-rate must be a positive number, got 0"),
        (["--resume"], "nothing to resume"),
        (["--model", "no/such/folder"], "no folder"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(vl2, colors, tmp_path, arguments, says):
    ran = vl2("finetune", colors, "--out", tmp_path / "out", *MODEL, *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert says in ran.err.splitlines()[-1]
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    assert not (tmp_path / "out" / "finetune.json").exists()


def test_data_that_is_not_there_is_one_line(vl2, tmp_path):
    ran = vl2("finetune", tmp_path / "none.csv", "--out", tmp_path / "out", *MODEL)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "no file or folder" in ran.err


def test_the_recipe_for_several_processes_is_planned_on_data_that_were_made_records(vl2, tmp_path, monkeypatch):
    found = [one for one in read_own(str(ROOT / "examples" / "squares")) if not isinstance(one, Problem)]
    monkeypatch.chdir(tmp_path)
    write_records((one.record for one in found), "own/train.tar")
    ran = vl2("train", ROOT / "examples" / "several.toml", "--dry-run", "--tflops", "1", "--json")
    planned = json.loads(ran.out)
    assert planned["is_measured"], planned["note"]
    assert planned["parts"]["language"]["trained"] == 1_984_512
