"""What a run of several processes does when one of them dies, hangs, or cannot write, and how another goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.forks import UNDRAWN, Fork, wait_for_steps
from tests.train.test_run import curve
from tests.train.toy import make_toy_data, make_toy_model, run_toy, toy_recipe, toy_stage
from tests.train.two_ranks import STORE_IS_KEPT, environment, open_store
from vl2.train.checkpoint import checkpoint_steps, newest_checkpoint
from vl2.train.recipe import Recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops processes as Linux does"),
]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_model(folder / "model"), make_toy_data(folder / "data")


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


class Together:
    """Some processes that train one recipe, without torchrun, which would end them all."""

    def __init__(
        self,
        recipe: Recipe,
        size: int,
        *arguments: str,
        first: Mapping[int, Callable[[], None]] | None = None,
        before: str = "",
    ) -> None:
        """`first` comes first in the process of a rank, and the program `before` in every process."""
        self.folder = Path(recipe.run.folder)
        path = self.folder.with_suffix(".toml")
        path.write_text(recipe.to_toml(), encoding="utf-8")
        self._store = open_store()
        self.processes = [
            Fork(
                ["train", str(path), *arguments],
                self.folder.with_suffix(f".{rank}.txt"),
                environment={**environment(rank, size, self._store.port), **STORE_IS_KEPT},
                first=(first or {}).get(rank),
                before=before,
            )
            for rank in range(size)
        ]

    def wait_for_steps(self, count: int) -> None:
        wait_for_steps(self.folder, count, self.processes)

    def end(self, rank: int) -> tuple[int, str]:
        """Return the exit code of a rank and the last line that it said."""
        code, said = self.processes[rank].end()
        return code, said.strip().splitlines()[-1]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


def make_recipe(toy: tuple[Path, Path], folder: Path, num_steps: int, **engine: Any) -> Recipe:
    recipe = toy_recipe(*toy, folder, toy_stage(num_steps=num_steps, learning_rate=1e-3, batch_size=4), export=False)
    return replace(recipe, engine=replace(recipe.engine, **engine))


# The second rank dies before its fourth step, in the first of its lives: torchrun counts them.
DIES_AT_A_STEP = """
import os, signal
from vl2.train.run import Run

one_step = Run._one_step

def step_or_die(self, steps):
    if self.step == 3 and self.ranks.rank == 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return one_step(self, steps)

Run._one_step = step_or_die
"""


def test_a_killed_rank_is_reported_and_another_layout_on_fewer_ranks_goes_on(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = make_recipe(toy, tmp_path / "whole", 6)
    run_toy(whole)
    broken = make_recipe(toy, tmp_path / "broken", 6, parallel="sharded", pipeline=2, balance_tiles=1)
    ranks = Together(broken, 2, before=DIES_AT_A_STEP)
    try:
        code, last = ranks.end(0)
    finally:
        ranks.kill()
    assert code == 1
    steps = checkpoint_steps(tmp_path / "broken")
    newest = newest_checkpoint(tmp_path / "broken")
    assert steps
    assert last == (
        f"vl2: rank 0 of 2: the connection to another rank has broken: it has died, or its machine has; "
        f"the last checkpoint is {newest}: continue with --resume, on any number of ranks"
    )
    run_toy(replace(whole, run=broken.run), resume=True)
    for mine, theirs in zip(curve(tmp_path / "broken"), curve(tmp_path / "whole"), strict=True):
        assert (mine["step"], mine["tokens"], mine["tiles"]) == (theirs["step"], theirs["tokens"], theirs["tiles"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


# The second rank dies with its part of the second checkpoint unwritten, or written before the first rank's.
DIES_WRITING = """
import os, signal, threading
import vl2.train.checkpoint, vl2.train.stopping

write = vl2.train.checkpoint.write_tensors
why_lost = vl2.train.stopping.why_lost
is_lost = threading.Event()
vl2.train.stopping.LAST_WRITE_S = 60.0 if has_written else 0.5

def tell_why_lost(error):
    is_lost.set()
    return why_lost(error)

def write_or_die(snapshot, folder, rank):
    is_second = "step-00000004" in folder.name
    if is_second and rank == 0 and has_written:
        is_lost.wait(60)
    if not is_second or rank == 0 or has_written:
        write(snapshot, folder, rank)
    if is_second and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)

vl2.train.checkpoint.write_tensors = write_or_die
vl2.train.stopping.why_lost = tell_why_lost
"""


@pytest.mark.parametrize(("has_written", "steps"), [(False, [2]), (True, [2, 4])])
def test_a_checkpoint_in_the_making_is_whole_or_given_up_when_a_rank_is_killed(
    toy: tuple[Path, Path], tmp_path: Path, has_written: bool, steps: list[int]
) -> None:
    recipe = make_recipe(toy, tmp_path / "run", 5000, parallel="sharded", expert_parallel=2)
    ranks = Together(recipe, 2, before=f"has_written = {has_written}\n{DIES_WRITING}")
    try:
        code, last = ranks.end(0)
    finally:
        ranks.kill()
    assert code == 1
    assert last.startswith("vl2: rank 0 of 2: the connection to another rank has broken: ")
    newest = tmp_path / "run" / "checkpoints" / f"step-{steps[-1]:08d}"
    assert f"the last checkpoint is {newest}: continue with --resume" in last
    assert checkpoint_steps(tmp_path / "run") == steps


def test_the_launch_file_starts_all_again_after_a_rank_has_died(toy: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = make_recipe(toy, tmp_path / "run", 6, parallel="sharded", balance_tiles=2)
    path = tmp_path / "run.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    # The file starts what is called vl2: here one whose second rank dies.
    command = tmp_path / "bin" / "vl2"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport torch\n{DIES_AT_A_STEP}\n{UNDRAWN}\nfrom vl2.cli.main import main\nmain()\n",
        encoding="utf-8",
    )
    command.chmod(0o755)
    folders = (str(command.parent), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    process = subprocess.run(
        ["bash", str(ROOT / "launch" / "torchrun.sh"), str(path)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        env={
            **os.environ,
            "PATH": os.pathsep.join(folders),
            "GPUS": "2",
            "RESTARTS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT / "src"),
        },
        timeout=300,
        check=False,
    )
    said = process.stderr
    assert process.returncode == 0, said
    # Who is told first that a rank was killed: the other rank, or torchrun, which then ends the other one.
    assert any(line in said for line in ("the connection to another rank has broken", "SIGKILL", "exitcode: -9"))
    assert "vl2: resumed from step" in said
    assert [line["step"] for line in curve(tmp_path / "run")] == list(range(1, 7))


def test_a_rank_that_hangs_is_reported_after_the_time_that_the_recipe_gives(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = make_recipe(toy, tmp_path / "run", 5000, parallel="sharded", expert_parallel=2, timeout_s=3.0)
    ranks = Together(recipe, 2)
    try:
        ranks.wait_for_steps(3)
        ranks.processes[1].send_signal(signal.SIGSTOP)
        code, last = ranks.end(0)
    finally:
        ranks.kill()
    assert code == 1
    assert last.startswith("vl2: rank 0 of 2: another rank has not answered in time: it hangs, or its machine does; ")
    assert last.endswith("continue with --resume, on any number of ranks")


def test_a_full_disk_of_one_rank_ends_the_run_and_the_last_checkpoint_remains(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = make_recipe(toy, tmp_path / "run", 2, parallel="sharded", expert_parallel=2)
    short = Together(recipe, 2)
    assert short.end(0)[0] == 0
    assert checkpoint_steps(tmp_path / "run") == [2]
    longer = make_recipe(toy, tmp_path / "run", 5000, parallel="sharded", expert_parallel=2, timeout_s=20.0)
    ranks = Together(longer, 2, "--resume", first={1: limit_file_size})
    try:
        code, last = ranks.end(1)
    finally:
        ranks.kill()
    assert code == 1
    assert last.startswith("vl2: cannot write the checkpoint of step 4 in ")
    assert last.endswith(f"the last complete one is {tmp_path / 'run' / 'checkpoints' / 'step-00000002'}")
    assert checkpoint_steps(tmp_path / "run") == [2]
