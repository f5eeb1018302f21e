"""The life of a run: prepare or resume, step until the end, and leave a checkpoint whatever ends it.

One step is: packs from the loader, gradients, the guard's verdict, the update, one line of metrics. A checkpoint
holds everything that the next step depends on, so a run that was killed goes on with the same numbers, bit for bit.
SIGINT and SIGTERM end the run after the step in hand, with a checkpoint; a second SIGINT ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from vl2.data.loader import LoadedStep, Loader
from vl2.errors import UserError
from vl2.model import VL2
from vl2.process.processor import Processor
from vl2.train.adapter import adapt, trained_state, write_adapter
from vl2.train.balance import load_over_mean, routers
from vl2.train.checkpoint import RECIPE, Checkpoints, Keep
from vl2.train.evaluation import Evaluation, HeldOut
from vl2.train.flops import ForwardCost, measure_rate, step_flops
from vl2.train.guard import Guard
from vl2.train.memory import checkpoint_activations
from vl2.train.metrics import METRICS, MetricsFile, StepMetrics
from vl2.train.parts import freeze
from vl2.train.prepare import (
    find_model,
    keep_model_files,
    make_loader,
    make_model,
    make_plan,
    num_steps,
    open_stores,
)
from vl2.train.progress import Progress
from vl2.train.ranks import Ranks, join, leave
from vl2.train.recipe import Recipe, changes, read_recipe
from vl2.train.schedule import learning_rate
from vl2.train.shard import is_sharded, local, origin, shard
from vl2.train.step import StepReport, TrainStep
from vl2.train.tensor_files import Block
from vl2.train.trackers import Tracker, open_tracker

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LOST_SHOWN = 5  # records that cannot be read are reported so often, then counted

Ended = Literal["finished", "interrupted", "terminated", "out of time"]
_REASONS: tuple[Ended, ...] = ("out of time", "terminated", "interrupted")  # the later one counts where ranks differ


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, at which step, and where its checkpoint and export are."""

    ended: Ended
    step: int
    checkpoint: Path
    export: Path | None = None


def train(
    recipe: Recipe, *, resume: bool = False, quiet: bool = False, evaluations: Sequence[Evaluation] | None = None
) -> Outcome:
    """Run a recipe to its end, or until it is stopped. Under torchrun, every rank calls it.

    `evaluations` None makes those of the recipe. UserError in one line for whatever a person can mend.
    """
    ranks = join(_device(recipe.engine.device))
    try:
        run = Run.prepare(recipe, ranks, resume=resume, quiet=quiet, evaluations=evaluations)
        return run.finish(run.loop())
    finally:
        leave()


class Run:
    """One process's part in a run that is ready to step."""

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        *,
        model: VL2,
        processor: Processor,
        loader: Loader,
        total: int,
        evaluations: Sequence[Evaluation],
        quiet: bool,
    ) -> None:
        self.recipe = recipe
        self.ranks = ranks
        self.model = model
        self.processor = processor
        self.loader = loader
        self.total = total
        self.folder = Path(recipe.run.folder)
        self.step = 0  # done
        self.train_step = TrainStep(model, recipe.stage, ranks)
        self.guard = Guard(recipe.guard)
        self.checkpoints = _checkpoints(recipe, ranks)
        self.is_quiet = quiet or not ranks.is_first
        self._evaluations = evaluations
        self._cost = ForwardCost.of(model.config)
        self._rate = measure_rate(ranks.device, DTYPES[recipe.engine.compute]) * ranks.size
        self._num_lost = 0
        if evaluations and is_sharded(model):
            raise UserError('evaluations during training need engine.parallel = "replicated": one rank answers alone')

    @classmethod
    def prepare(
        cls,
        recipe: Recipe,
        ranks: Ranks,
        *,
        resume: bool,
        quiet: bool,
        evaluations: Sequence[Evaluation] | None,
    ) -> Run:
        """Make everything, from the recipe alone or from the newest checkpoint."""
        folder = Path(recipe.run.folder)
        say = _sayer(quiet or not ranks.is_first)
        found = _checkpoints(recipe, ranks).newest()
        if ranks.is_first:
            _open_folder(folder, resume=resume)
        if resume and found is None:
            say(f"there is no checkpoint in {folder} yet: starting at the first step")
        if evaluations is None:
            evaluations = [HeldOut.open(task) for task in recipe.run.tasks]
        # The weights under an adapter are in no checkpoint: they come again from where they came from at first.
        is_filled_later = found is not None and not recipe.adapter.is_used
        files = find_model(recipe.model, folder if is_filled_later else None)
        processor = files.processor()
        stores = open_stores(recipe)
        plan = make_plan(recipe, stores, processor, folder=folder, ranks=ranks, say=say)
        model = make_model(files, recipe.seed, is_first=ranks.is_first, is_filled_later=is_filled_later)
        if recipe.adapter.is_used:
            adapt(model, recipe.adapter, recipe.seed, DTYPES[recipe.engine.compute])
        freeze(model, recipe.stage)
        if recipe.engine.activation_checkpointing:
            checkpoint_activations(model)
        shard(model, recipe.engine.parallel, ranks, DTYPES[recipe.engine.compute])
        if ranks.is_first:
            keep_model_files(files, folder)
        run = cls(
            recipe,
            ranks,
            model=model,
            processor=processor,
            loader=make_loader(recipe, plan, stores, processor, ranks),
            total=num_steps(recipe.stage, plan),
            evaluations=evaluations,
            quiet=quiet,
        )
        if found is not None:
            for change in _changes(found, recipe):
                say(f"the recipe has changed since the checkpoint: {change}")
            run.load(found)
            say(f"resumed from step {run.step:,} of {run.total:,}: {found}")
        return run

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "model": trained_state(self.model) if self.recipe.adapter.is_used else self.model.state_dict(),
            "train_step": self.train_step.state_dict(),
            "loader": self.loader.state_dict(),
            "guard": self.guard.state_dict(),
            "step": self.step,
        }

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        state = self.checkpoints.load(folder, self.state_dict())
        self.train_step.load_state_dict(state["train_step"])
        self.loader.load_state_dict(state["loader"])
        self.guard.load_state_dict(state["guard"])
        self.step = int(state["step"])

    def save(self) -> None:
        self.checkpoints.save(self.step, self.state_dict(), self.recipe.to_toml())

    def loop(self) -> Ended:
        """Step until the end, a signal or the time limit, and write a checkpoint then."""
        options = self.recipe.run
        until = time.monotonic() + options.minutes * 60 if options.minutes is not None else float("inf")
        progress = Progress(self.total, self.step, log_every=options.log_every_steps, quiet=self.is_quiet)
        if self.ranks.is_first:
            self.checkpoints.remove_partial()
        is_saved = self.step > 0
        with _Outputs(self.recipe, self.ranks, self.step) as outputs, progress, _signals() as asked:
            steps = iter(self.loader)
            ended: Ended = "finished"
            while self.step < self.total:
                metrics = self._one_step(steps)
                is_saved = False
                outputs.step(metrics)
                progress.step(metrics)
                self._report_lost(progress)
                if self.guard.is_hopeless:
                    raise self._hopeless(metrics)
                self.checkpoints.check()
                is_last = self.step == self.total
                if is_last or _is_due(self.step, options.evaluate_every_steps):
                    self._evaluate(outputs, progress)
                why = self._why_to_stop(asked, until)
                if _is_due(self.step, options.save_every_steps) or is_last or why is not None:
                    self.save()
                    is_saved = True
                if why is not None and not is_last:
                    ended = why
                    break
            if not is_saved:
                self.save()
            self.checkpoints.wait()
        self.ranks.barrier()
        return ended

    def finish(self, ended: Ended) -> Outcome:
        """Export and draw what a finished run is for, and say in a line where things are."""
        say = _sayer(self.is_quiet)
        self.checkpoints.close()
        checkpoint = self.checkpoints.newest()
        assert checkpoint is not None, "a run leaves a checkpoint"
        outcome = Outcome(ended=ended, step=self.step, checkpoint=checkpoint)
        if not self.ranks.is_first:
            return outcome
        if ended != "finished":
            say(f"{ended} at step {self.step:,} of {self.total:,}: saved {checkpoint}; go on with --resume")
            return outcome
        if self.recipe.adapter.is_used:
            outcome = replace(outcome, export=write_adapter(self.model, self.folder, self.recipe.model.name))
        elif self.recipe.run.export:
            from vl2.train.export import export

            outcome = replace(outcome, export=export(checkpoint, self.folder / "export", replaces=True))
        _draw(self.folder, say)
        where = f"; what was trained is in {outcome.export}" if outcome.export is not None else ""
        say(f"finished {self.total:,} steps: saved {checkpoint}{where}")
        return outcome

    def _one_step(self, steps: Iterator[LoadedStep]) -> StepMetrics:
        started = time.perf_counter()
        loaded = next(steps)
        waited = time.perf_counter() - started
        report = self.train_step.accumulate(loaded.packs)
        rate = learning_rate(self.recipe.stage, self.step, self.total)
        why = self.guard.judge(report.loss, report.grad_norm)
        if why is None:
            self.train_step.apply(report, rate)
        else:
            self.train_step.discard()
        self.step += 1
        flops = self._flops(loaded)
        return self._measure(loaded, report, rate, why or "", flops, time.perf_counter() - started, waited)

    def _measure(
        self,
        loaded: LoadedStep,
        report: StepReport,
        rate: float,
        why: str,
        flops: float,
        seconds: float,
        waited: float,
    ) -> StepMetrics:
        places = sum(map(len, loaded.division.ranks)) * self.recipe.stage.seq_len
        return StepMetrics(
            step=self.step,
            loss=report.loss,
            loss_by_category={
                name: total / count for name, (total, count) in sorted(report.loss_by_category.items()) if count
            },
            balance_loss=report.balance_loss,
            learning_rate=rate,
            grad_norm=report.grad_norm,
            tokens=report.num_tokens,
            trained_tokens=report.num_trained_tokens,
            tiles=report.num_tiles,
            pack_fill=report.num_tokens / places,
            expert_load=tuple(load_over_mean(report.expert_load)),
            bias_range=_bias_range(self.model),
            discarded=why,
            num_discarded=self.guard.num_discarded,
            step_s=seconds,
            data_wait_s=waited,
            tokens_per_s=report.num_tokens / seconds,
            tiles_per_s=report.num_tiles / seconds,
            mfu=flops / seconds / self._rate,
        )

    def _flops(self, loaded: LoadedStep) -> float:
        """Return the operations of this step on all ranks."""
        own = 0.0
        for pack in loaded.packs:
            lengths = pack.cu_seqlens.diff().tolist()[: len(pack.names)]  # without the document of padding
            trained = int((pack.labels >= 0).sum())
            own += step_flops(
                self._cost, self.recipe.stage.frozen, lengths=lengths, num_trained=trained, num_tiles=len(pack.tiles)
            )
        return float(self.ranks.sum_(torch.tensor(own, dtype=torch.float64)))

    def _evaluate(self, outputs: _Outputs, progress: Progress) -> None:
        if self._evaluations and self.ranks.is_first:
            was_training = self.model.training
            self.model.eval()
            scores: dict[str, float] = {}
            for evaluation in self._evaluations:
                scores.update(evaluation(self.model, self.processor, self.step))
            self.model.train(was_training)
            outputs.evaluation(self.step, scores)
            progress.say(f"step {self.step:,}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        self.ranks.barrier()

    def _why_to_stop(self, asked: _Asked, until: float) -> Ended | None:
        """Return why the run must stop before its end, agreed by all ranks."""
        own = asked.ended or ("out of time" if time.monotonic() > until else None)
        code = int(self.ranks.max_(torch.tensor(0 if own is None else _REASONS.index(own) + 1)))
        return _REASONS[code - 1] if code else None

    def _report_lost(self, progress: Progress) -> None:
        for lost in self.loader.problems[self._num_lost :]:
            self._num_lost += 1
            if self._num_lost <= _LOST_SHOWN:
                progress.say(f"record {lost.record} of {lost.source} is left out: {lost.message}")
            if self._num_lost == _LOST_SHOWN:
                progress.say("more records may be left out, which is not reported")

    def _hopeless(self, metrics: StepMetrics) -> UserError:
        self.checkpoints.wait()
        newest = self.checkpoints.newest()
        where = f"the last checkpoint is {newest}" if newest is not None else "there is no checkpoint"
        return UserError(
            f"stopped at step {self.step}: {self.guard.num_in_a_row} steps in a row were discarded, "
            f"the last because its {metrics.discarded}; {where}"
        )


class _Outputs:
    """metrics.jsonl and the trackers, on the first rank; nothing on the others."""

    def __init__(self, recipe: Recipe, ranks: Ranks, step: int) -> None:
        self._file: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        if ranks.is_first:
            folder = Path(recipe.run.folder)
            self._file = MetricsFile(folder, last_step=step)
            config = {"recipe": recipe.to_toml()}
            self._trackers = [open_tracker(kind, folder, config, step + 1) for kind in recipe.run.trackers]

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        for output in (*self._trackers, *((self._file,) if self._file is not None else ())):
            output.close()

    def step(self, metrics: StepMetrics) -> None:
        if self._file is not None:
            self._file.append(metrics.to_dict())
        for tracker in self._trackers:
            tracker.log(metrics.step, metrics.scalars())

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        if self._file is not None:
            self._file.append({"step": step, "evaluation": scores})
        for tracker in self._trackers:
            tracker.log(step, {f"evaluation/{name}": value for name, value in scores.items()})


class _Asked:
    """What signals have asked for."""

    ended: Ended | None = None


@contextmanager
def _signals() -> Iterator[_Asked]:
    """Note SIGINT and SIGTERM instead of dying of them; the second SIGINT ends the process at once."""
    asked = _Asked()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and asked.ended == "interrupted":
            os.write(2, b"\nvl2: stopped at once; --resume goes on from the last checkpoint\n")
            os._exit(130)  # a checkpoint that is half-written has no name yet, so nothing can be left broken
        asked.ended = "interrupted" if number == signal.SIGINT else "terminated"
        os.write(2, b"\nvl2: stopping after this step, with a checkpoint\n")

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may ask for signals
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_folder(folder: Path, *, resume: bool) -> None:
    """Make the run's folder. UserError if a run lives there already and is not to be resumed."""
    if not resume and (folder / METRICS).exists():
        raise UserError(f"a run lives in {folder} already: go on with --resume, or choose another --run.folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the run folder {folder}: {error.strerror or error}") from None


def _checkpoints(recipe: Recipe, ranks: Ranks) -> Checkpoints:
    keep = Keep(newest=recipe.run.keep, every_steps=recipe.run.keep_every_steps)
    return Checkpoints(Path(recipe.run.folder), keep=keep, ranks=ranks, block_of=_block_of)


def _changes(checkpoint: Path, recipe: Recipe) -> list[str]:
    try:
        return changes(read_recipe(checkpoint / RECIPE), recipe)
    except UserError as error:  # of another version of this program: its values cannot be compared, only its state read
        return [str(error)]


def _block_of(tensor: Tensor) -> Block:
    return Block(local=local(tensor), origin=origin(tensor), shape=tuple(tensor.shape))


def _bias_range(model: VL2) -> tuple[float, ...]:
    """Return largest less smallest expert bias of each layer that has one."""
    biases = [bias for router in routers(model) if (bias := router.e_score_correction_bias) is not None]
    return tuple(torch.stack([bias.max() - bias.min() for bias in biases]).tolist()) if biases else ()


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _sayer(is_quiet: bool) -> Any:
    def say(text: str) -> None:
        if not is_quiet:
            print(f"vl2: {text}", file=sys.stderr, flush=True)

    return say


def _draw(folder: Path, say: Any) -> None:
    """Draw the run where matplotlib is there; a run does not fail for want of pictures."""
    from vl2.train.plots import save_run_plots

    try:
        save_run_plots(folder)
    except UserError as error:
        say(str(error))
