"""The commands `vl2 train`, which trains by a recipe, and `vl2 train plot` and `export`, which work on its results."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.flags import OptionalText, OutputFlags, print_json
from vl2.errors import UserError
from vl2.train.recipe import ModelOptions, Recipe, RunOptions, paper_stage, read_recipe

if TYPE_CHECKING:
    from vl2.train.run import Outcome


EXIT_CODES = {"finished": 0, "out of time": 0, "interrupted": 128 + signal.SIGINT, "terminated": 128 + signal.SIGTERM}


def print_outcome(outcome: Outcome) -> None:
    """Print a run's outcome as JSON."""
    values = dataclasses.asdict(outcome)
    print_json({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})


def exit_as(outcome: Outcome) -> None:
    """Exit with the signal's code if a signal has stopped the run. Otherwise return."""
    if EXIT_CODES[outcome.ended]:
        sys.exit(EXIT_CODES[outcome.ended])


# The recipe whose values `--help` shows if none is named.
_EXAMPLE = Recipe(
    model=ModelOptions(name="deepseek-ai/deepseek-vl2-tiny"),
    stage=paper_stage("tiny/alignment"),
    run=RunOptions(folder="runs/tiny/alignment"),
)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model by a recipe. Every value of the recipe can be set here; those shown are the recipe's.

    Examples:
      vl2 train recipes/tiny/alignment.toml --dry-run
      vl2 train recipes/tiny/alignment.toml
      vl2 train recipes/tiny/alignment.toml --resume --run.minutes 600
      vl2 train my.toml --stage.learning-rate 1e-4 --stage.num-steps 2000 --run.folder runs/second
      torchrun --nproc-per-node 8 --no-python vl2 train recipes/small/pretraining.toml --engine.parallel sharded
      vl2 train plot runs/tiny/alignment
      vl2 train export runs/tiny/alignment ./aligned --dtype bfloat16

    The run folder gets metrics.jsonl, checkpoints, plots and the exported model; docs/training.md says more.
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE", help_behavior_hint="")] = ""
    """a TOML file; recipes/ has the paper's"""
    resume: bool = False
    """go on from the newest checkpoint in the run folder"""
    dry_run: bool = False
    """train nothing: say what would be trained, and what memory and time it takes"""
    tflops: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    """for --dry-run: the rate that one device reaches, in 10^12 operations per second; measured here where left out"""
    output: Annotated[OutputFlags, tyro.conf.arg(name="")] = field(default_factory=OutputFlags)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = _EXAMPLE

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Train:
        """Read the recipe that the command line names, then override its values with the other arguments."""
        is_help = any(argument in ("-h", "--help") for argument in arguments)
        words = [argument for argument in arguments if not argument.startswith("-")]
        file = next((word for word in words if word.endswith(".toml")), words[0] if words else "")
        recipe = _EXAMPLE
        if file and not (is_help and not Path(file).is_file()):
            recipe = _with_one_length(read_recipe(file), arguments)
        elif not is_help:
            raise UserError("say which recipe to train: a TOML file, such as recipes/tiny/alignment.toml")
        return tyro.cli(
            cls,
            prog="vl2 train",
            description="",
            args=list(arguments),
            default=cls(recipe=recipe),
            config=(tyro.conf.FlagCreatePairsOff,),
        )

    def run(self) -> None:
        if self.dry_run:
            self._print_plan()
            return
        from vl2.train.run import train

        outcome = train(self.recipe, resume=self.resume, quiet=self.output.quiet)
        if self.output.json:
            print_outcome(outcome)
        exit_as(outcome)

    def _print_plan(self) -> None:
        from vl2.train.dry_run import plan_run, print_plan

        planned = plan_run(self.recipe, rate=self.tflops * 1e12 if self.tflops is not None else None)
        if self.output.json:
            print_json(planned.to_dict())
        else:
            print_plan(planned, sys.stdout)


@dataclass(frozen=True, kw_only=True)
class TrainPlot:
    """Draw the loss, learning rate, expert load and evaluations of a run, as PNG and SVG.

    Examples:
      vl2 train plot runs/tiny/alignment
      vl2 train plot runs/tiny/alignment --out pictures/
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """the run folder"""
    out: OptionalText = None
    """where the pictures go; the run's folder `plots` by default"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.train.plots import save_run_plots

        paths = save_run_plots(Path(self.folder), Path(self.out) if self.out is not None else None)
        if self.output.json:
            print_json([str(path) for path in paths])
        elif not self.output.quiet:
            print(f"vl2: {len(paths)} pictures in {paths[0].parent}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class TrainExport:
    """Write the model of a run or checkpoint as a checkpoint folder in the released layout, an adapter in PEFT's.

    Examples:
      vl2 train export runs/tiny/alignment ./aligned
      vl2 train export runs/tiny/alignment/checkpoints/step-00001000 ./at-1000 --dtype float32
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """a run folder, for its newest checkpoint, or a checkpoint in one"""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """a new folder"""
    dtype: OptionalText = None
    """float32, bfloat16 or float16; what the run computed in by default"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.train.export import export

        folder = export(Path(self.source), Path(self.out), dtype=self.dtype)
        if self.output.json:
            print_json({"folder": str(folder)})
        elif not self.output.quiet:
            print(f"vl2: what was trained is in {folder}", file=sys.stderr)


TRAIN_COMMANDS = {"plot": TrainPlot, "export": TrainExport}


def _with_one_length(recipe: Recipe, arguments: Sequence[str]) -> Recipe:
    """Let a length on the command line, in steps or in tokens, replace the recipe's length."""
    given = [name for name in ("num_steps", "num_tokens") if _names(arguments, name)]
    if len(given) != 1:
        return recipe
    lengths: dict[str, int | None] = {"num_steps": None, "num_tokens": None, given[0]: 1}  # 1 is replaced by the value
    stage = dataclasses.replace(recipe.stage, num_steps=lengths["num_steps"], num_tokens=lengths["num_tokens"])
    return dataclasses.replace(recipe, stage=stage)


def _names(arguments: Sequence[str], field_name: str) -> bool:
    options = [argument.partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")]
    return f"__stage.{field_name}" in options
