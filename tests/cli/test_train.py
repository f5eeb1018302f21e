"""`vl2 train`: the recipe and the line over it, plans, plots and exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.toy import make_toy_data, make_toy_model, toy_recipe, toy_stage
from vl2.cli.train import Train

RECIPE = str(Path(__file__).parents[2] / "recipes" / "tiny" / "alignment.toml")
IN_ONE_PROCESS = (
    "--engine.parallel", "replicated", "--engine.pipeline", "1", "--engine.expert-parallel", "1",
    "--engine.tensor-parallel", "1",
)  # fmt: skip


def test_the_line_goes_over_the_recipe():
    command = Train.read(
        [RECIPE, "--stage.learning-rate", "1e-3", "--run.folder", "out", "--engine.parallel", "sharded"]
    )
    assert (command.recipe.stage.learning_rate, command.recipe.run.folder) == (1e-3, "out")
    assert (command.recipe.engine.parallel, command.recipe.stage.num_tokens) == ("sharded", 2_000_000_000)


def test_a_length_in_steps_takes_the_place_of_one_in_tokens():
    for option in (["--stage.num-steps", "7"], ["--stage.num-steps=7"], ["--stage.num_steps", "7"]):
        stage = Train.read([*option, RECIPE]).recipe.stage
        assert (stage.num_steps, stage.num_tokens) == (7, None)


def test_sources_lists_and_tables_can_be_set():
    line = ["--data.sources.0.path", "x.tar", "--run.trackers", "tensorboard", "--stage.rate-multipliers.vision", "0.5"]
    found = Train.read([RECIPE, *line]).recipe
    assert (found.data.sources[0].path, found.run.trackers) == ("x.tar", ("tensorboard",))
    assert found.stage.rate_multipliers == {"vision": 0.5}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train", "--resume"], 1, "say which recipe to train: a TOML file"),
        (["train", "none.toml"], 1, "cannot read none.toml: No such file or directory"),
        (["train", RECIPE, "--stage.learning-rat", "1"], 2, "unknown option --stage.learning-rat (did you mean"),
        (["train", RECIPE, "--stage.batch-size", "1.5"], 2, "Error parsing --stage.batch-size: invalid"),
        (["train", RECIPE, "--run.minutes", "0"], 1, "run.minutes must be positive, got 0"),
        (["train", RECIPE, "--data.temperature", "inf"], 1, "data.temperature must be a finite number, got inf"),
        (["train", RECIPE, "--engine.device", "gpu"], 1, "the device must be auto, cpu, cuda or cuda:N, "),
        (["train", RECIPE, "--dry-run", "--engine.device", "gpu"], 1, "the device must be auto, cpu, cuda"),
        (["train", RECIPE, "--dry-run", "--engine.device", "cuda:99"], 1, "there is no device cuda:99, this machine"),
        (["train", RECIPE, "--dry-run", "--adapter.method", "lora"], 1, 'an adapter needs engine.parallel'),
        (["train", RECIPE, "--dry-run", "--adapter.method", "lora", "--adapter.targets", "mlp", *IN_ONE_PROCESS], 1,
         "stage alignment: nothing is left to train"),
        (["train", "plot", "nowhere"], 1, "no metrics.jsonl in nowhere: is this a run folder?"),
        (["train", "export", "nowhere", "out"], 1, "there is no checkpoint in nowhere"),
        (["train", "export", "nowhere", "out", "--dtype", "int3"], 1, "dtype must be one of float32, bfloat16"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(vl2, arguments, code, says):
    ran = vl2(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(f"vl2: {says}")
    assert ran.err.count("\n") == 1


def test_the_help_shows_the_values_of_the_recipe(vl2):
    ran = vl2("train", RECIPE, "--help")
    assert ran.code == 0
    assert "runs/tiny/alignment" in ran.out
    assert "default: None" not in ran.out


def test_a_dry_run_prints_tables_or_json(vl2):
    ran = vl2("train", RECIPE, "--dry-run", "--tflops", "300")
    assert ran.code == 0, ran.err
    for word in ("projector", "trained", "tokens per step", "activations", "one device at 40%"):
        assert word in ran.out
    values = json.loads(vl2("train", RECIPE, "--dry-run", "--tflops", "300", "--json").out)
    assert values["parts"]["language"]["trained"] == 0
    assert values["num_steps"] == 1907


def test_a_run_is_trained_drawn_and_exported(vl2, tmp_path):
    recipe = toy_recipe(
        make_toy_model(tmp_path / "model"),
        make_toy_data(tmp_path / "data", 8),
        tmp_path / "run",
        toy_stage(num_steps=2),
    )
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    ran = vl2("train", tmp_path / "recipe.toml", "--json", "--run.no-export")
    assert (ran.code, json.loads(ran.out)["ended"], json.loads(ran.out)["export"]) == (0, "finished", None), ran.err
    assert "vl2: step 2/2  loss " in ran.err
    assert len(list((tmp_path / "run" / "plots").iterdir())) == 6
    drawn = vl2("train", "plot", tmp_path / "run", "--out", tmp_path / "plots", "--json")
    assert len(json.loads(drawn.out)) == len(list((tmp_path / "plots").iterdir())) == 6
    written = vl2("train", "export", tmp_path / "run", tmp_path / "half", "--dtype", "bfloat16")
    assert written.code == 0, written.err
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert vl2("train", "export", tmp_path / "run", tmp_path / "half").code == 1


# A run that loses a rank, in an interpreter that would never come to its end.
LOSES_A_RANK = """
import atexit, threading
from vl2.cli.main import main
from vl2.train.run import Run

def lose(*_, **__):
    print("said before")
    raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")

Run.prepare = lose
for_ever = threading.Event().wait
threading.Thread(target=for_ever).start()
atexit.register(for_ever)
main()
"""


def test_a_lost_rank_ends_the_process_whatever_waits_in_it(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(toy_recipe(tmp_path, tmp_path, tmp_path / "run").to_toml(), encoding="utf-8")
    command = [sys.executable, "-c", LOSES_A_RANK, "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert (done.returncode, done.stdout) == (1, "said before\n")
    assert done.stderr == (
        "vl2: rank 0 of 1: the connection to another rank has broken: it has died, or its machine has; "
        "there is no checkpoint yet, so start again from the beginning\n"
    )
