"""The training loop: prepare or resume a run, step until the end, and always leave a checkpoint.

One step loads packs, computes gradients, checks for a loss spike, updates the weights and writes one line of metrics. A
checkpoint holds everything that the next step depends on, so a resumed run continues with the same numbers: bit for bit
on CPUs, and up to the order of summation in kernels on CUDA.

`stopping.py` handles early ends, `metrics.py` the measurement of steps, and `metric_outputs.py` their output.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vl2.data.loader import LoadedStep, Loader
from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.model import VL2
from vl2.process.processor import Processor
from vl2.train.adapter import adapt, trained_state, write_adapter
from vl2.train.best import LossWatch
from vl2.train.checkpoint import RECIPE, Checkpoints, Retention
from vl2.train.checkpoint_download import prepare_store
from vl2.train.checkpoint_store import CheckpointStore
from vl2.train.cpu_encoder import use_cpu_encoder
from vl2.train.evaluation import Evaluation, HeldOut, open_evaluation
from vl2.train.flops import matmul_dtype
from vl2.train.fp8 import check_fp8, use_fp8
from vl2.train.loss import AuxiliaryLoss, check_auxiliary_loss, open_auxiliary_loss
from vl2.train.loss_spike import LossSpikeSkip
from vl2.train.metric_outputs import Outputs, TrainProgress
from vl2.train.metrics import METRICS, Meter, StepMetrics
from vl2.train.parallel.parallelize import check_experts, check_model, check_ranks, parallelize
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parallel.pipeline_step import PipelineStep
from vl2.train.parallel.tile_balance import TileBalancer
from vl2.train.parts import check_trained, freeze
from vl2.train.prepare import (
    find_model,
    keep_model_files,
    make_loader,
    make_model,
    make_plan,
    num_steps,
    open_stores,
)
from vl2.train.ranks import Ranks, RankZeroSection, join, leave, on_first_rank
from vl2.train.recipe import Recipe, changes, read_recipe
from vl2.train.recompute import checkpoint_activations, compile_encoder
from vl2.train.shard import is_sharded, local, origin
from vl2.train.stage import learning_rate
from vl2.train.step import TrainStep
from vl2.train.stopping import Ended, Stop, rank_lost
from vl2.train.tensor_files import Block

_LOST_SHOWN = 5  # the number of unreadable records that are reported; further ones are only counted

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run: how and at which step it ended, and its checkpoint and export."""

    ended: Ended
    step: int
    checkpoint: Path
    export: Path | None = None
    best_step: int | None = None  # the step whose weights were exported, if a loss was watched


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    quiet: bool = False,
    evaluations: Sequence[Evaluation] | None = None,
    watch: LossWatch | None = None,
) -> Outcome:
    """Train by a recipe until its end or until the run is stopped. Under torchrun, every rank calls this.

    `evaluations` overrides those of the recipe. With `watch`, the run may end early, and it exports the weights with
    the lowest loss instead of the last. Raise UserError for invalid input, and RankLost, a UserError, if
    another rank has died or hangs. After RankLost, threads of PyTorch may block the interpreter's exit because they
    wait for that rank; the command line therefore exits without joining them.
    """
    ranks = join(recipe.engine.device, recipe.engine.timeout_s)
    run: Run | None = None
    try:
        check_ranks(recipe, ranks.size)
        run = Run.prepare(recipe, ranks, resume=resume, quiet=quiet, evaluations=evaluations, watch=watch)
        return run.finish(run.loop())
    except (RuntimeError, OSError) as error:
        lost = rank_lost(error, ranks, Path(recipe.run.folder), None if run is None else run.checkpoints)
        if lost is None:
            raise
        raise lost from error
    finally:
        leave()


class Run:
    """A prepared run, on one rank."""

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        *,
        model: VL2 | PipelineModel,
        processor: Processor,
        loader: Loader,
        total: int,
        evaluations: Sequence[Evaluation],
        quiet: bool,
        data: Ranks,
        tensor: Ranks,
        auxiliary_loss: AuxiliaryLoss | None = None,
        watch: LossWatch | None = None,
    ) -> None:
        self.recipe = recipe
        self.ranks = ranks
        self.model = model
        self.processor = processor
        self.loader = loader
        self.total = total
        self.folder = Path(recipe.run.folder)
        self.step = 0  # done
        self.train_step = _train_step(recipe, model, ranks, data, tensor, auxiliary_loss)
        self.loss_spikes = LossSpikeSkip(recipe.guard)
        self.checkpoints = _checkpoints(recipe, ranks, writes_whole=self.train_step.writes_whole)
        self.is_quiet = quiet or not ranks.is_first
        self._evaluations = evaluations
        self._watch = watch
        self._meter = Meter(
            model,
            recipe.stage,
            ranks,
            DTYPES[recipe.engine.compute],
            data_ranks=self.train_step.data_ranks,
            trains_weights=not recipe.adapter.is_used,
        )
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
        watch: LossWatch | None = None,
    ) -> Run:
        """Prepare a run from the recipe, and from the newest checkpoint with `resume`."""
        check_auxiliary_loss(recipe.auxiliary_loss)
        check_fp8(recipe.engine.fp8, ranks.device)
        folder = Path(recipe.run.folder)
        say = _make_say(quiet or not ranks.is_first)
        store = _open_store(recipe)
        if ranks.is_first:
            _open_folder(folder, resume=resume)
        if store is not None:
            on_first_rank(ranks, recipe.engine.timeout_s, lambda: prepare_store(store, folder, resume=resume, say=say))
        found = _checkpoints(recipe, ranks).newest()
        if resume and found is None:
            where = f"{folder} or {store.url}" if store is not None else str(folder)
            say(f"there is no checkpoint in {where} yet: starting at the first step")
        if recipe.engine.compute == "bfloat16" and matmul_dtype(ranks.device) != torch.bfloat16:
            say('this CPU has no instructions for bfloat16: compute = "float32" is several times faster here')
        if evaluations is None:
            evaluations = [open_evaluation(task) for task in recipe.run.tasks]
        # Checkpoints do not contain the weights under an adapter, which are loaded from their original source again.
        is_filled_later = found is not None and not recipe.adapter.is_used
        files = find_model(recipe.model, folder if is_filled_later else None)
        check_model(files.config, recipe, ranks.size)
        check_experts(files.config, recipe, ranks.size)
        processor = replace(files.processor(), character_level=frozenset(recipe.data.spelled))
        for evaluation in evaluations:
            if isinstance(evaluation, HeldOut):
                evaluation.check(processor, files.config.language_config.max_position_embeddings)
        stores = open_stores(recipe)
        plan = make_plan(recipe, stores, processor, folder=folder, ranks=ranks, say=say)
        model = make_model(files, recipe.seed, is_first=ranks.is_first, is_filled_later=is_filled_later)
        if recipe.adapter.is_used:
            adapt(model, recipe.adapter, recipe.seed, DTYPES[recipe.engine.compute])
        freeze(model, recipe.stage)
        check_trained(model, recipe.stage)
        use_fp8(model, recipe.engine.fp8)
        if recipe.engine.compile:
            compile_encoder(model)
        elif ranks.device.type == "cpu" and recipe.engine.compute == "bfloat16":
            use_cpu_encoder(model)
        checkpoint_activations(
            model, encoder=recipe.engine.recomputed_encoder, layers=recipe.engine.activation_checkpointing
        )
        placed = parallelize(model, recipe, plan, ranks)
        auxiliary_loss = open_auxiliary_loss(recipe.auxiliary_loss, placed.model, processor)
        if ranks.is_first:
            keep_model_files(files, folder)
        run = cls(
            recipe,
            ranks,
            model=placed.model,
            data=placed.data,
            tensor=placed.tensor,
            processor=processor,
            loader=make_loader(recipe, plan, stores, processor, placed.data, auxiliary_loss),
            total=num_steps(recipe.stage, plan),
            evaluations=evaluations,
            quiet=quiet,
            auxiliary_loss=auxiliary_loss,
            watch=watch,
        )
        if found is not None:
            for change in _changes(found, recipe):
                say(f"the recipe has changed since the checkpoint: {change}")
            run.load(found)
            run.read_watched()
            say(f"resumed from step {run.step:,} of {run.total:,}: {found}")
        return run

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        model = self.model
        weights = model.state_dict()
        if self.recipe.adapter.is_used and isinstance(model, VL2):
            weights = trained_state(model)
        return {
            "model": weights,
            "train_step": self.train_step.state_dict(),
            "loader": self.loader.state_dict(),
            "guard": self.loss_spikes.state_dict(),
            "step": self.step,
        }

    def load(self, folder: Path) -> None:
        """Restore a checkpoint."""
        state = self.checkpoints.load(folder, self.state_dict())
        self.train_step.load_state_dict(state["train_step"])
        self.loader.load_state_dict(state["loader"])
        self.loss_spikes.load_state_dict(state["guard"])
        self.step = int(state["step"])

    def read_watched(self) -> None:
        """Read the losses that were evaluated before a run was stopped."""
        if self._watch is not None:
            self._watch.read(self.folder, self.step)
            self.checkpoints.best_step = self._watch.best_step

    def save(self) -> None:
        self.checkpoints.save(self.step, self.state_dict(), self.recipe.to_toml())

    def loop(self) -> Ended:
        """Step until the end, a signal or the time limit, then write a checkpoint. Return the reason for the end."""
        options = self.recipe.run
        progress = TrainProgress(self.total, self.step, log_every=options.log_every_steps, quiet=self.is_quiet)
        if self.ranks.is_first:
            self.checkpoints.remove_partial()
        is_saved = self.step > 0
        outputs, stop = Outputs(self.recipe, self.ranks, self.step), Stop(options.minutes, self.ranks)
        with outputs, progress, stop:
            steps = iter(self.loader)
            ended: Ended = "finished"
            if self._misses_evaluation():
                self._evaluate(outputs, progress)
            while self.step < self.total and not self._has_stopped_falling():
                metrics = self._one_step(steps)
                is_saved = False
                outputs.step(metrics)
                progress.step(metrics)
                self._report_lost(progress)
                self._report_uploads(progress)
                if self.loss_spikes.must_stop:
                    raise self._loss_spike_error(metrics)
                self.checkpoints.check()
                is_last = self.step == self.total
                is_evaluated = is_last or _is_due(self.step, options.evaluate_every_steps)
                # Save before the evaluation, so that no steps are lost if it fails.
                if is_evaluated or _is_due(self.step, options.save_every_steps):
                    self.save()
                    is_saved = True
                if is_evaluated:
                    self._evaluate(outputs, progress)
                why = stop.why()
                if why is not None and not is_last and not self._has_stopped_falling():
                    ended = why
                    break
            if not is_saved:
                self.save()
            self.checkpoints.wait()
            if self.checkpoints.is_uploading:
                progress.say(f"copying the last checkpoint to {self.recipe.run.checkpoints}")
            self.checkpoints.finish_uploads()
            self._report_uploads(progress)
        self.ranks.barrier()
        return ended

    def finish(self, ended: Ended) -> Outcome:
        """Export and plot a finished run, and print the paths of the results."""
        say = _make_say(self.is_quiet)
        self.checkpoints.close()
        checkpoint = self.checkpoints.newest()
        assert checkpoint is not None, "a run leaves a checkpoint"
        outcome = Outcome(ended=ended, step=self.step, checkpoint=checkpoint)
        best_step = None if self._watch is None else self._watch.best_step
        if ended == "finished" and best_step is not None:
            checkpoint = self.checkpoints.at(best_step)
            if best_step != self.step:
                self.load(checkpoint)
            outcome = replace(outcome, best_step=best_step)
        if not self.ranks.is_first:
            return outcome
        if ended != "finished":
            say(f"{ended} at step {self.step:,} of {self.total:,}: saved {checkpoint}; resume with --resume")
            return outcome
        if self.recipe.adapter.is_used:
            assert isinstance(self.model, VL2), "an adapter is trained on whole models"
            outcome = replace(outcome, export=write_adapter(self.model, self.folder, self.recipe.model.name))
        elif self.recipe.run.export:
            from vl2.train.export import export

            outcome = replace(outcome, export=export(checkpoint, self.folder / "export", replaces=True))
        _save_plots(self.folder, say)
        where = f"; the result is in {outcome.export}" if outcome.export is not None else ""
        early = "" if outcome.step == self.total else f" of {self.total:,}, as the held-out loss no longer falls"
        best = "" if best_step in (None, outcome.step) else f"; the held-out loss was lowest at step {best_step:,}"
        say(f"finished {outcome.step:,} steps{early}{best}: saved {checkpoint}{where}")
        return outcome

    def _one_step(self, steps: Iterator[LoadedStep]) -> StepMetrics:
        started = time.perf_counter()
        loaded = next(steps)
        waited = time.perf_counter() - started
        if self.recipe.adapter.is_used and self.recipe.adapter.dropout:
            torch.manual_seed(_dropout_seed(self.recipe.seed, self.step, self.ranks.rank))
        report = self.train_step.accumulate(loaded.packs)
        rate = learning_rate(self.recipe.stage, self.step, self.total)
        why = self.loss_spikes.judge(report.loss, report.grad_norm, report.num_trained_tokens)
        if why is None:
            self.train_step.apply(report, rate)
        else:
            self.train_step.discard()
        self.step += 1
        return self._meter.measure(
            self.step,
            loaded,
            report,
            rate=rate,
            discarded=why or "",
            num_discarded=self.loss_spikes.num_discarded,
            totals=self._meter.totals(loaded),
            seconds=time.perf_counter() - started,
            waited=waited,
        )

    def _evaluate(self, outputs: Outputs, progress: TrainProgress) -> None:
        section = RankZeroSection(self.ranks, self.recipe.engine.timeout_s)
        scores: dict[str, float] | None = None
        if self.ranks.is_first:
            with section.heartbeats():
                scores = self._scores()
            if scores is not None:
                outputs.evaluation(self.step, scores)
                shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
                progress.say(f"step {self.step:,}  {shown}")
        else:
            section.wait()
        if self._watch is not None:
            self._watch.add(self.step, self.ranks.broadcast_object(scores or {}))
            self.checkpoints.best_step = self._watch.best_step

    def _misses_evaluation(self) -> bool:
        """Return whether a run was killed after a checkpoint and before the evaluation that belongs to it."""
        is_due = self.step == self.total or _is_due(self.step, self.recipe.run.evaluate_every_steps)
        return self._watch is not None and self.step > 0 and is_due and self.step not in self._watch.losses

    def _has_stopped_falling(self) -> bool:
        return self._watch is not None and self._watch.has_stopped_falling

    def _scores(self) -> dict[str, float] | None:
        """Run the evaluations and return their scores; None if there are none."""
        if not self._evaluations:
            return None
        assert isinstance(self.model, VL2), "a pipeline cannot be evaluated"
        was_training = self.model.training
        self.model.eval()
        scores: dict[str, float] = {}
        for evaluation in self._evaluations:
            scores.update(evaluation(self.model, self.processor, self.step))
        self.model.train(was_training)
        return scores

    def _report_lost(self, progress: TrainProgress) -> None:
        for lost in self.loader.problems[self._num_lost :]:
            self._num_lost += 1
            if self._num_lost <= _LOST_SHOWN:
                progress.say(f"record {lost.record} of {lost.source} is left out: {lost.message}")
            if self._num_lost == _LOST_SHOWN:
                progress.say("more records may be left out, which is not reported")

    def _report_uploads(self, progress: TrainProgress) -> None:
        for line in self.checkpoints.upload_lines():
            progress.say(line)

    def _loss_spike_error(self, metrics: StepMetrics) -> UserError:
        self.checkpoints.wait()
        newest = self.checkpoints.newest()
        where = f"the last checkpoint is {newest}" if newest is not None else "there is no checkpoint"
        return UserError(
            f"stopped at step {self.step}: {self.loss_spikes.num_in_a_row} steps in a row were discarded, "
            f"the last because its {metrics.discarded}; {where}"
        )


def _open_folder(folder: Path, *, resume: bool) -> None:
    """Create the run folder. Raise UserError if it holds a run that is not to be resumed, or is not writable."""
    if not resume and (folder / METRICS).exists():
        raise UserError(f"{folder} already has a run: resume it with --resume, or choose another --run.folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the run folder {folder}: {error.strerror or error}") from None


def _open_store(recipe: Recipe) -> CheckpointStore | None:
    return CheckpointStore(recipe.run.checkpoints) if recipe.run.checkpoints else None


def _checkpoints(recipe: Recipe, ranks: Ranks, *, writes_whole: bool | None = None) -> Checkpoints:
    keep = Retention(newest=recipe.run.keep, every_steps=recipe.run.keep_every_steps)
    return Checkpoints(
        Path(recipe.run.folder),
        keep=keep,
        ranks=ranks,
        block_of=_block_of,
        writes_whole=writes_whole,
        most_wait_s=recipe.engine.timeout_s,
        store=_open_store(recipe),
    )


def _train_step(
    recipe: Recipe,
    model: VL2 | PipelineModel,
    ranks: Ranks,
    data: Ranks,
    tensor: Ranks,
    auxiliary_loss: AuxiliaryLoss | None,
) -> TrainStep:
    packs_together = recipe.engine.balance_tiles
    if isinstance(model, PipelineModel):
        return PipelineStep(model, recipe.stage, balances_tiles=packs_together > 0, seed=recipe.seed)
    balancer = None
    if packs_together and data.size > 1:
        dtype = DTYPES[recipe.engine.compute]
        balancer = TileBalancer(model, data, packs_together=packs_together, tile_dtype=dtype)
    return TrainStep(
        model,
        recipe.stage,
        ranks,
        balancer,
        auxiliary_loss=auxiliary_loss,
        auxiliary_weight=recipe.auxiliary_loss.weight,
        seed=recipe.seed,
        data=data,
        tensor=tensor,
    )


def _changes(checkpoint: Path, recipe: Recipe) -> list[str]:
    try:
        return changes(read_recipe(checkpoint / RECIPE), recipe)
    except UserError as error:  # the recipe is from another version and cannot be compared; its state can be read
        return [str(error)]


def _block_of(tensor: Tensor) -> Block:
    return Block(local=local(tensor), origin=origin(tensor), shape=tuple(tensor.shape))


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the dropout seed of a step on a rank, which is the same in a resumed run.

    A seed per step is necessary because a checkpoint holds only the first rank's generators.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:4], "little")


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _make_say(is_quiet: bool) -> Say:
    def say(text: str) -> None:
        if not is_quiet:
            print(f"vl2: {text}", file=sys.stderr, flush=True)

    return say


def _save_plots(folder: Path, say: Say) -> None:
    """Plot the run if matplotlib is installed. Missing plots do not make a run fail."""
    from vl2.train.plots import save_run_plots

    try:
        save_run_plots(folder)
    except UserError as error:
        say(str(error))
