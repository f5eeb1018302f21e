"""What a run of several processes does when one of them dies, hangs, or cannot write, and how another goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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
        preexec: Callable[[int], None] | None = None,
        before: str = "",
    ) -> None:
        """`preexec` and the program `before` come first in every process."""
        self.folder = Path(recipe.run.folder)
        path = self.folder.with_suffix(".toml")
        path.write_text(recipe.to_toml(), encoding="utf-8")
        self._store = open_store()
        program = f"import torch; torch.set_num_threads(1)\n{before}\nfrom vl2.cli.main import main; main()"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, "train", str(path), *arguments],
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                env={
                    **os.environ,
                    **environment(rank, size, self._store.port),
                    **STORE_IS_KEPT,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(ROOT / "src"),
                },
                preexec_fn=(lambda rank=rank: preexec(rank)) if preexec is not None else None,
            )
            for rank in range(size)
        ]

    def wait_for_steps(self, count: int) -> None:
        path = self.folder / "metrics.jsonl"
        while all(p.poll() is None for p in self.processes) and (
            not path.exists() or path.read_bytes().count(b"\n") < count
        ):
            time.sleep(0.005)

    def end(self, rank: int) -> tuple[int, str]:
        """Return the exit code of a rank and the last line that it said."""
        _, said = self.processes[rank].communicate(timeout=240)
        return self.processes[rank].returncode, said.strip().splitlines()[-1]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=60)


def make_recipe(toy: tuple[Path, Path], folder: Path, num_steps: int, **engine: Any) -> Recipe:
    recipe = toy_recipe(*toy, folder, toy_stage(num_steps=num_steps, learning_rate=1e-3, batch_size=4), export=False)
    return replace(recipe, engine=replace(recipe.engine, **engine))


# The second rank dies before its sixth step, in the first of its lives: torchrun counts them.
DIES_AT_A_STEP = """
import os, signal
from vl2.train.run import Run

one_step = Run._one_step

def step_or_die(self, steps):
    if self.step == 5 and self.ranks.rank == 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return one_step(self, steps)

Run._one_step = step_or_die
"""


def test_a_killed_rank_is_reported_and_another_layout_on_fewer_ranks_goes_on(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = make_recipe(toy, tmp_path / "whole", 8)
    run_toy(whole)
    broken = make_recipe(toy, tmp_path / "broken", 8, parallel="sharded", pipeline=2, balance_tiles=1)
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
        f"the last checkpoint is {newest}: go on with --resume, on as many ranks or on others"
    )
    run_toy(replace(whole, run=broken.run), resume=True)
    for mine, theirs in zip(curve(tmp_path / "broken"), curve(tmp_path / "whole"), strict=True):
        assert (mine["step"], mine["tokens"], mine["tiles"]) == (theirs["step"], theirs["tokens"], theirs["tiles"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


# The second rank dies with its part of the second checkpoint unwritten, or written before the first rank's.
DIES_WRITING = """
import os, signal, time
import vl2.train.checkpoint, vl2.train.lost

write = vl2.train.checkpoint.write_tensors
vl2.train.lost.LAST_WRITE_S = 60.0 if has_written else 0.5

def write_or_die(snapshot, folder, rank):
    is_second = "step-00000004" in folder.name
    if is_second and rank == 0 and has_written:
        time.sleep(3)
    if not is_second or rank == 0 or has_written:
        write(snapshot, folder, rank)
    if is_second and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)

vl2.train.checkpoint.write_tensors = write_or_die
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
    assert f"the last checkpoint is {newest}: go on with --resume" in last
    assert checkpoint_steps(tmp_path / "run") == steps


def test_the_launch_file_starts_all_again_after_a_rank_has_died(toy: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = make_recipe(toy, tmp_path / "run", 12, parallel="sharded", balance_tiles=2)
    path = tmp_path / "run.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    # The file starts what is called vl2: here one whose second rank dies.
    command = tmp_path / "bin" / "vl2"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport torch\n{DIES_AT_A_STEP}\nfrom vl2.cli.main import main\nmain()\n",
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
    assert "the connection to another rank has broken" in said or "SIGKILL" in said
    assert "vl2: resumed from step" in said
    assert [line["step"] for line in curve(tmp_path / "run")] == list(range(1, 13))


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
    assert last.endswith("go on with --resume, on as many ranks or on others")


def test_a_full_disk_of_one_rank_ends_the_run_and_the_last_checkpoint_remains(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = make_recipe(toy, tmp_path / "run", 2, parallel="sharded", expert_parallel=2)
    short = Together(recipe, 2)
    short.processes[0].wait(timeout=240)
    assert checkpoint_steps(tmp_path / "run") == [2]
    longer = make_recipe(toy, tmp_path / "run", 5000, parallel="sharded", expert_parallel=2, timeout_s=20.0)
    ranks = Together(longer, 2, "--resume", preexec=lambda rank: limit_file_size() if rank else None)
    try:
        code, last = ranks.end(1)
    finally:
        ranks.kill()
    assert code == 1
    assert last.startswith("vl2: cannot write the checkpoint of step 4 in ")
    assert last.endswith(f"the last whole one is {tmp_path / 'run' / 'checkpoints' / 'step-00000002'}")
    assert checkpoint_steps(tmp_path / "run") == [2]
