"""The built-in model in one run: from random weights and pinned inputs to an export.

    python -m experiments.nano.inputs --given FOLDER --to inputs
    python -m experiments.nano.run experiments/nano/recipe.toml --inputs inputs --to runs/nano --budget 10

The same command goes on where a run was stopped or killed: with the stage, the step and the budget that it had. With
--status it says how far a run is. In the folder are, beside those of the stages:

    progress.txt    how far it is, as it is printed every minute
    hours.json      core-seconds that each stage has used, children and all
    NAME.log        what a stage said
    nano.png        the curves of all stages
    export/         the model at the end
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments.nano.inputs.manifest import MANIFEST, check_manifest
from experiments.nano.inputs.pins import sha256_of
from experiments.nano.plan import DATA, INDEX, RunRecipe, StagePlan, Where, data_recipe, make_plans, read_run
from experiments.nano.plot import draw_run
from experiments.nano.progress import CoreSeconds, progress_table, write_progress
from experiments.nano.warm_up.recipe import WarmUpRecipe
from vl2.checkpoint.folder import new_folder
from vl2.errors import UserError
from vl2.files import write_whole
from vl2.train.toml_file import from_value, to_toml

EVERY_S = 60.0  # between two looks at how far it is
DRAWN = "drawn"  # a file that says that all data are there
SETTINGS = "run.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is begun with and must be gone on with. Older runs did not note all of it: None."""

    core_hours: float
    seed: int | None = None
    inputs: str | None = None
    device: str | None = None
    compute: str | None = None
    recipe_sha256: str | None = None
    """of the recipe as it was read, without its seed"""
    inputs_sha256: str | None = None
    """of the inputs' list"""


@dataclass(frozen=True, kw_only=True)
class NanoRun:
    """A run in its folder."""

    recipe: RunRecipe
    where: Where
    core_hours: float
    ranks: int

    @property
    def plans(self) -> list[StagePlan]:
        return make_plans(self.recipe, self.core_hours, self.where)

    def go(self) -> None:
        """Do what is not done yet, stage by stage. UserError in one line for whatever a person can mend."""
        plans = self.plans  # first of all: what is wrong with recipe and budget is found here
        check_manifest(self.where.inputs)
        self._keep_settings()
        self._draw_data()
        for plan in plans:
            if not plan.export.is_dir():
                self._train(plan)
            draw_run(self.where.to, plans)
        export = self.where.to / "export"
        if not export.is_dir():
            with new_folder(export) as partial:
                shutil.copytree(plans[-1].export, partial, dirs_exist_ok=True)
        print(f"nano: the model is in {export}", flush=True)

    def status(self) -> str:
        """Return how far the run is, by the budget that it was begun with, and change nothing in its folder."""
        begun = read_settings(self.where.to)
        core_hours = self.core_hours if begun is None else begun.core_hours
        return progress_table(self.where.to, make_plans(self.recipe, core_hours, self.where), "")

    def _keep_settings(self) -> None:
        """Note the settings, so that a run is not gone on with by others. UserError if it was begun with others."""
        settings = Settings(
            core_hours=self.core_hours,
            seed=self.recipe.seed,
            inputs=str(self.where.inputs),
            device=self.where.device,
            compute=self.where.compute,
            recipe_sha256=hashlib.sha256(to_toml(replace(self.recipe, seed=0)).encode()).hexdigest(),
            inputs_sha256=sha256_of(self.where.inputs / MANIFEST),
        )
        begun = read_settings(self.where.to)
        if begun is None:
            write_whole(self.where.to / SETTINGS, json.dumps(asdict(settings)) + "\n")
            return
        now = asdict(settings)
        others = [f"{name} {value}" for name, value in asdict(begun).items() if value not in (None, now[name])]
        if others:
            raise UserError(f"{self.where.to} was begun with {', '.join(others)}: give the same, or another folder")

    def _draw_data(self) -> None:
        to = self.where.to
        if (to / DATA / DRAWN).is_file():
            return
        (to / INDEX).write_text(data_recipe(self.recipe, self.core_hours, self.where.inputs), encoding="utf-8")
        command = [
            "-m",
            "vl2",
            "data",
            "build",
            str(to / INDEX),
            "--to",
            str(to / DATA),
            "--processes",
            str(self.ranks * self.where.helpers),
        ]
        self._call("drawing", command)
        (to / DATA / DRAWN).touch()

    def _train(self, plan: StagePlan) -> None:
        path = self.where.to / f"{plan.name}.toml"
        path.write_text(plan.recipe.to_toml(), encoding="utf-8")
        is_warm_up = isinstance(plan.recipe, WarmUpRecipe)
        module = ["experiments.nano.warm_up"] if is_warm_up else ["vl2", "train"]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        # With --resume a stage without a checkpoint begins, also where it was killed before its first.
        self._call(plan.name, [*launcher, "-m", *module, str(path), "--resume"])

    def _call(self, name: str, arguments: Sequence[str]) -> None:
        """Run a command to its end and count its core-seconds. UserError with what its log says if it fails."""
        path = self.where.to / f"{name}.log"
        hours = CoreSeconds(self.where.to, name)
        with path.open("a", encoding="utf-8") as log:
            begin = log.tell()
            child = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=_end_with_parent,
            )
            signals = list[int]()

            def stop(sign: int, _: object) -> None:
                signals.append(sign)
                child.terminate()

            handlers = {sign: signal.signal(sign, stop) for sign in (signal.SIGTERM, signal.SIGINT)}
            try:
                while (code := _wait(child)) is None:
                    hours.note(child.pid)
                    print(write_progress(self.where.to, self.plans, name), flush=True)
            finally:
                for sign, handler in handlers.items():
                    signal.signal(sign, handler)
        hours.note(None)
        print(write_progress(self.where.to, self.plans, name), flush=True)
        if signals:
            raise UserError(f"stopped in {name}; the same command goes on")
        if code:
            lines = path.read_bytes()[begin:].decode("utf-8", errors="replace").strip().splitlines()
            # Behind a stage's own error there is torchrun's account of it.
            said = [line for line in lines if line.startswith(("vl2:", "nano:"))][-1:] or lines[-3:]
            raise UserError(f"{name} ended with {code}; {path} says: {' / '.join(said)[-400:]}")


def read_settings(folder: Path) -> Settings | None:
    """Return what a run was begun with, or None if it was not. UserError if that cannot be read."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        settings: Settings = from_value(Settings, json.loads(path.read_text(encoding="utf-8")), SETTINGS)
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the run goes on as this command says") from None
    return settings


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(EVERY_S)
    except subprocess.TimeoutExpired:
        return None


def _end_with_parent() -> None:
    """Ask Linux to end a stage when the run is killed, or two would write into one folder after the next start."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--inputs", type=Path, required=True, help="the folder that experiments.nano.inputs made")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True, help="core-hours; 2, 10 and 40 were thought of")
    parser.add_argument("--seed", type=int, help="another than the recipe's: other pictures, other first weights")
    parser.add_argument("--ranks", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on one GPU give --ranks 1 --budget 40")
    parser.add_argument("--compute", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--status", action="store_true", help="say how far the run is, and change nothing")
    args = parser.parse_args()
    try:
        if args.ranks < 1:
            raise UserError(f"--ranks must be at least 1, got {args.ranks}")
        helpers = 1 if args.device == "cpu" else max(1, (os.cpu_count() or 1) // args.ranks - 1)
        where = Where(inputs=args.inputs, to=args.to, device=args.device, compute=args.compute, helpers=helpers)
        recipe = read_run(args.recipe)
        if args.seed is not None:
            recipe = replace(recipe, seed=args.seed)
        run = NanoRun(recipe=recipe, where=where, core_hours=args.budget, ranks=args.ranks)
        if args.status:
            print(run.status())
        else:
            run.go()
    except UserError as error:
        print(f"nano: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
