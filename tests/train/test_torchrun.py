"""`vl2 train` under torchrun: two gloo processes have the curve of one, and survive a kill and a stop as one does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.train.forks import UNDRAWN
from tests.train.test_run import curve
from tests.train.toy import make_toy_data, make_toy_model, toy_recipe, toy_stage
from vl2.train.checkpoint import checkpoint_steps
from vl2.train.checkpoint_store import CheckpointStore
from vl2.train.recipe import Mode, Recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NUM_STEPS = 6
STAGE = toy_stage(num_steps=NUM_STEPS, learning_rate=1e-3)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_model(folder / "model"), make_toy_data(folder / "data")


def start(recipe: Recipe, num_ranks: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `vl2 train` on some ranks, in a session of its own, so that all its processes can be killed together."""
    path = Path(recipe.run.folder).with_suffix(".toml")
    path.write_text(recipe.to_toml(), encoding="utf-8")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks), "--standalone", "--no-python"]
    program = f"{UNDRAWN}; from vl2.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, *launch, sys.executable, "-c", program, "train", str(path), *arguments],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        start_new_session=True,
    )


def train(recipe: Recipe, num_ranks: int, *arguments: str) -> None:
    process = start(recipe, num_ranks, *arguments)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def wait_for_steps(recipe: Recipe, process: subprocess.Popen[str], count: int) -> None:
    path = Path(recipe.run.folder) / "metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.005)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill torchrun and its ranks, which have sessions of their own, without a word; or find that it has ended."""
    if process.poll() is not None:
        return
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, ranks)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)


def in_mode(recipe: Recipe, mode: Mode) -> Recipe:
    return replace(recipe, engine=replace(recipe.engine, parallel=mode))


@pytest.fixture(scope="module")
def alone(toy: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one rank, which holds its weights whole in either mode."""
    recipe = in_mode(toy_recipe(*toy, tmp_path_factory.mktemp("alone") / "run", STAGE), "sharded")
    train(recipe, 1)
    return Path(recipe.run.folder)


@pytest.fixture(scope="module", params=["replicated", "sharded"])
def whole(toy: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Recipe:
    """What two ranks have trained from its beginning to its end."""
    recipe = in_mode(toy_recipe(*toy, tmp_path_factory.mktemp("whole") / "run", STAGE), request.param)
    train(recipe, 2)
    return recipe


def test_two_processes_have_the_curve_and_the_export_of_one(alone: Path, whole: Recipe) -> None:
    folders = (alone, Path(whole.run.folder))
    curve_alone, curve_together = map(curve, folders)
    assert len(curve_alone) == NUM_STEPS
    for one, two in zip(curve_alone, curve_together, strict=True):
        for name in ("tokens", "trained_tokens", "tiles", "pack_fill", "learning_rate", "step"):
            assert one[name] == two[name]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        assert two["expert_load"] == pytest.approx(one["expert_load"], rel=0.02)
    one_export, two_export = (load_file(folder / "export" / "model.safetensors") for folder in folders)
    for name, weight in one_export.items():
        assert float((weight - two_export[name]).norm()) <= 1e-3 * float(weight.norm()), name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the ranks in /proc")
def test_two_killed_processes_go_on_with_the_same_numbers_bit_for_bit(whole: Recipe, tmp_path: Path) -> None:
    killed = replace(whole, run=replace(whole.run, folder=str(tmp_path / "killed")))
    process, rng = start(killed, 2, "--resume"), random.Random(os.getpid())
    step = rng.randrange(1, NUM_STEPS)
    wait_for_steps(killed, process, step)
    time.sleep(rng.uniform(0, 0.1))
    kill_all(process)
    train(killed, 2, "--resume")
    folders = [Path(recipe.run.folder) for recipe in (whole, killed)]
    assert curve(folders[1]) == curve(folders[0]), f"killed after step {step}"
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("whole", ["sharded"], indirect=True)
def test_two_processes_on_a_new_machine_go_on_from_a_store(whole: Recipe, tmp_path: Path) -> None:
    store = CheckpointStore(f"file://{tmp_path}/store")
    files = sorted((Path(whole.run.folder) / "checkpoints" / "step-00000004").iterdir())
    for file in files:
        store.put(file, 4)
    store.finish(4, {file.name: file.stat().st_size for file in files})
    moved = replace(whole, run=replace(whole.run, folder=str(tmp_path / "moved"), checkpoints=store.url))
    train(moved, 2, "--resume")
    folders = [Path(recipe.run.folder) for recipe in (whole, moved)]
    assert curve(folders[1]) == [line for line in curve(folders[0]) if line["step"] > 4]
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    assert store.steps() == [4, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_leaves_a_checkpoint_of_the_step_in_hand(
    toy: tuple[Path, Path], tmp_path: Path, number: signal.Signals
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=5000), save_every_steps=4000)
    process = start(recipe, 2)
    wait_for_steps(recipe, process, 2)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    steps = [line["step"] for line in curve(tmp_path / "run")]
    assert checkpoint_steps(tmp_path / "run") == [steps[-1]], said
