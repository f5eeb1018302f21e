"""Fine-tune a model on a user's data and score it, using the general training loop.

In addition to the files of a training run, the run folder contains:

    data/           the validated records, split into training and held-out records
    finetune.json   the options and the scores before training; a resumed run must have the same options
    adapter/        the adapter in PEFT's format, or
    tuned/          the whole model if its own weights were trained
    merged/         the whole model with the adapter merged in, if requested
    answers.md      answers to held-out records before and after training
    report.json     scores before and after training, and the held-out loss during training
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.checkpoint import load_model, locate_checkpoint
from vl2.checkpoint.resolve import BUILT_IN
from vl2.config import ModelConfig
from vl2.data.record import Record
from vl2.data.store import open_random
from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.infer.vlm import VLM, load
from vl2.model import VL2
from vl2.process.processor import Processor
from vl2.train.adapter import adapt
from vl2.train.adapter_options import AdapterOptions
from vl2.train.best import LossWatch, evaluated, still_falls
from vl2.train.evaluation import Evaluation, answer_of
from vl2.train.finetune import split_data
from vl2.train.finetune.options import PATIENCE, TuningOptions
from vl2.train.finetune.score import LOSS, HeldOutLoss, HeldOutPreference, Scores, score
from vl2.train.finetune.split_data import OwnData, prepare
from vl2.train.parallel.parallelize import check_model
from vl2.train.prepare import INDEXES, make_plan, open_stores
from vl2.train.ranks import ONE, find_device, join, on_first_rank
from vl2.train.recipe import Recipe
from vl2.train.run import train
from vl2.train.shard import shard
from vl2.train.size import TrainedSize, trained_size
from vl2.train.stopping import Ended

ABOUT, REPORT, ANSWERS = "finetune.json", "report.json", "answers.md"
TUNED, MERGED = "tuned", "merged"
_SHOWN = 8  # answers in answers.md
_WINDOWS = 8  # windows of the plan from which the fill of sequences is measured


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """A fine-tuning run that has been checked and sized but not started."""

    options: TuningOptions
    folder: Path
    data: OwnData
    recipe: Recipe
    size: TrainedSize
    fill: float  # the fraction of sequence positions that are not padding

    @property
    def num_steps(self) -> int:
        assert self.recipe.stage.num_steps is not None
        return self.recipe.stage.num_steps

    def lines(self) -> list[str]:
        """Return a summary to print before the run starts."""
        data, stage, adapter, size = self.data, self.recipe.stage, self.recipe.adapter, self.size
        bad = f", {data.num_bad} left out" if data.num_bad else ""
        parts = ", ".join(f"{part} {count:,}" for part, count in size.trained.items())
        what = "weights"
        if adapter.is_used:
            fresh = f"of rank {adapter.rank} on {', '.join(adapter.targets)}"
            what = f"{adapter.method} {f'that goes on from {adapter.start}' if adapter.start else fresh}"
        records = stage.batch_size * stage.seq_len * self.fill / data.mean_tokens
        rates = "".join(f", {part} x {rate:g}" for part, rate in stage.rate_multipliers.items())
        epochs = self.num_steps * records / data.num_train
        lines = [
            f"data     {_count_noun(data.num_train, 'record')} to train on, {data.num_held_out} held out{bad}",
            f"trained  {what}: {size.num_trained:,} of {size.parameters:,} parameters ({parts})",
            f"memory   weights {_size(size.weight_bytes)}, optimizer {_size(size.optimizer_bytes)}, and activations",
            f"steps    {self.num_steps} of about {records:.0f} records "
            f"({_count_noun(stage.batch_size, 'sequence')} of {stage.seq_len} tokens), "
            f"rate {stage.learning_rate:g}{rates}; {epochs:.3g} epochs",
        ]
        if size.adapted:
            shares = (
                f"{name} {one.parameters:,} in {_count_noun(one.layers, 'layer')}" for name, one in size.adapted.items()
            )
            lines.insert(2, f"adapted  {'; '.join(shares)}")
        if not data.num_held_out:
            lines.append(
                "warning  nothing is held out: the run cannot tell when to stop, and the last weights are kept"
            )
        if data.num_bare_boxes:
            lines.append(
                f"warning  {data.num_bare_boxes} answers hold numbers like boxes without <|ref|> and <|det|>: to the "
                "model they are text; give boxes in pixels instead"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class TuningResult:
    """The result of a fine-tuning run."""

    ended: Ended
    step: int  # the last one
    best_step: int | None = None  # the one with the lowest held-out loss, whose weights were written
    is_unfinished: bool = False  # the held-out loss was still falling at the last of the planned steps
    folder: Path
    before: Scores | None = None  # None without held-out records
    on_the_way: tuple[tuple[int, float], ...] = ()  # (step, held-out loss after it) during training
    after: Scores | None = None
    trained: Path | None = None  # the folder of the adapter or model
    merged: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "ended": self.ended,
            "step": self.step,
            "best_step": self.best_step,
            "is_unfinished": self.is_unfinished,
            "before": None if self.before is None else self.before.to_dict(),
            "on_the_way": [{"step": step, "loss": loss} for step, loss in self.on_the_way],
            "after": None if self.after is None else self.after.to_dict(),
            "trained": None if self.trained is None else str(self.trained),
            "merged": None if self.merged is None else str(self.merged),
        }


def plan(
    location: str,
    folder: Path,
    options: TuningOptions,
    *,
    num_held_out: int | None = None,
    resume: bool = False,
    say: Callable[[str], None],
) -> TuningPlan:
    """Check the inputs, prepare the data and size the run, without reading any weights.

    Raise UserError if anything is wrong, before any training.
    """
    asked = _fixed_options(location, options, num_held_out)
    num_ranks = _check_folder(folder, asked, options.num_ranks, resume=resume)
    options = dataclasses.replace(options, num_ranks=num_ranks)
    checkpoint = locate_checkpoint(options.model)
    config = ModelConfig.from_file(checkpoint / "config.json")
    processor = Processor.from_folder(checkpoint)
    context = config.language_config.max_position_embeddings
    is_random = options.model == BUILT_IN and not any(checkpoint.glob("*.safetensors"))
    if not resume:
        _write_json(folder / ABOUT, {"asked": asked, "num_ranks": num_ranks, "before": None})
    try:
        data = prepare(
            location,
            folder,
            processor,
            max_tokens=context,
            num_held_out=num_held_out,
            seed=options.seed,
            say=say,
            is_pairs=options.objective == "preference",
        )
        train_path = folder / split_data.FOLDER / split_data.TRAIN
        recipe = options.recipe(data, folder, train_path, config=config, is_random=is_random)
        check_model(config, recipe, 1)
        size = trained_size(config, recipe.stage, recipe.adapter, DTYPES[recipe.engine.compute])
        if not size.num_trained:
            raise UserError("nothing is left to train: freeze fewer parts")
        fill = _measure_fill(recipe, processor, folder, options.epochs_of(data))
        recipe = options.recipe(data, folder, train_path, config=config, is_random=is_random, fill=fill)
    except UserError:
        if not resume:  # leave no files that would block the next attempt
            for made in (split_data.FOLDER, INDEXES):
                shutil.rmtree(folder / made, ignore_errors=True)
            (folder / ABOUT).unlink()
        raise
    return TuningPlan(options=options, folder=folder, data=data, recipe=recipe, size=size, fill=fill)


def finetune(
    planned: TuningPlan, *, resume: bool = False, merge: bool = False, max_new_tokens: int = 128, quiet: bool = False
) -> TuningResult:
    """Score the model, train it, write the result, and score that.

    Under torchrun, every rank calls this with the plan of the first one. The first rank alone scores and writes.
    """
    folder = planned.folder
    records = _held_out(folder)
    engine = planned.recipe.engine
    ranks = join(engine.device, engine.timeout_s)
    before = on_first_rank(ranks, engine.timeout_s, lambda: _score_before(planned, records, max_new_tokens))
    watched: list[Evaluation] = [HeldOutLoss(records)] if records else []
    if records and planned.options.objective == "preference":
        watched = [HeldOutPreference(records, planned.recipe.stage)]
    watch = LossWatch(LOSS, patience=PATIENCE if planned.options.stops_early else None) if records else None
    outcome = train(planned.recipe, resume=resume, quiet=quiet, evaluations=watched, watch=watch)
    gc.collect()  # free the trained model, which is in reference cycles, before the next model is loaded
    on_the_way = tuple(evaluated(folder, LOSS))
    tuned = TuningResult(
        ended=outcome.ended,
        step=outcome.step,
        best_step=outcome.best_step,
        is_unfinished=outcome.step == planned.num_steps and still_falls([loss for _, loss in on_the_way]),
        folder=folder,
        before=before,
        on_the_way=on_the_way,
    )
    if outcome.ended != "finished" or outcome.export is None:  # only the first rank has exported
        return tuned
    is_adapter = planned.recipe.adapter.is_used
    trained = outcome.export if is_adapter else _replace(outcome.export, folder / TUNED)
    after = _score(planned, trained, records, max_new_tokens) if records else None
    tuned = dataclasses.replace(tuned, after=after, trained=trained)
    if merge and is_adapter:
        merged = _merge(load(planned.options.model, adapter=trained, device="cpu"), folder / MERGED)
        tuned = dataclasses.replace(tuned, merged=merged)
    _write_json(folder / REPORT, tuned.to_dict())
    if before is not None and after is not None:
        (folder / ANSWERS).write_text(answers_page(records, before, after), encoding="utf-8")
    return tuned


def answers_page(records: Sequence[Record], before: Scores, after: Scores) -> str:
    """Return a Markdown page of held-out records with the answers before and after training."""
    lines = ["# Answers to held-out records", "", "| | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {old} | {new} |" for name, old, new in score_rows(before, after)]
    for record, old, new in list(zip(records, before.answers, after.answers, strict=True))[:_SHOWN]:
        asked = " ".join(
            "(image)" if part.text is None else record.with_boxes(part.text)
            for message in record.messages[:-1]
            for part in message.parts
        )
        lines += [
            "",
            f"## {_plain(record.id)}",
            "",
            f"- asked: {_plain(asked)}",
            f"- wanted: {_plain(answer_of(record))}",
        ]
        lines += [f"- before: {_plain(old)}", f"- after: {_plain(new)}"]
    return "\n".join(lines) + "\n"


def score_rows(before: Scores, after: Scores) -> list[tuple[str, str, str]]:
    """Return rows of (name, score before, score after) as text."""
    rows = [
        ("loss", f"{before.loss:.3f}", f"{after.loss:.3f}"),
        ("exact match", f"{before.exact_match:.1%}", f"{after.exact_match:.1%}"),
    ]
    if before.box_accuracy is not None and after.box_accuracy is not None:
        rows.append(("boxes found", f"{before.box_accuracy:.1%}", f"{after.box_accuracy:.1%}"))
    if before.preferred is not None and after.preferred is not None:
        rows.append(("preferred", f"{before.preferred:.1%}", f"{after.preferred:.1%}"))
    return rows


def _score_before(planned: TuningPlan, records: Sequence[Record], max_new_tokens: int) -> Scores | None:
    """Return the scores of the original model; a resumed run reads them from finetune.json."""
    if not records:
        return None
    about = json.loads((planned.folder / ABOUT).read_text(encoding="utf-8"))
    if about["before"] is not None:
        return Scores.from_dict(about["before"])
    before = _score(planned, None, records, max_new_tokens)
    _write_json(planned.folder / ABOUT, {**about, "before": before.to_dict()})
    return before


def _score(planned: TuningPlan, trained: Path | None, records: Sequence[Record], max_new_tokens: int) -> Scores:
    """Score the trained adapter or model, loaded as a user would; with None, the starting point of the training.

    A QLoRA adapter is scored over the quantized weights, because the full ones may not fit into memory.
    """
    options, adapter = planned.options, planned.recipe.adapter
    if adapter.method == "qlora":
        model, processor = _with_quantized_base(planned, trained)
    else:
        name: str | Path = options.model if trained is None or adapter.is_used else trained
        start = (trained or adapter.start or None) if adapter.is_used else None
        vlm = load(name, adapter=start, device=options.device)
        model, processor = vlm.model, vlm.processor
    return score(model, processor, records, max_new_tokens=max_new_tokens)


def _with_quantized_base(planned: TuningPlan, trained: Path | None) -> tuple[VL2, Processor]:
    """Return the model with the trained adapter, or the initial one, over the quantized weights of the run."""
    recipe, folder = planned.recipe, locate_checkpoint(planned.options.model)
    adapter = recipe.adapter
    if trained is not None:
        adapter = AdapterOptions(method=adapter.method, base=adapter.base, start=str(trained))
    dtype = DTYPES[recipe.engine.compute]
    model = load_model(folder)
    adapt(model, adapter, recipe.seed, dtype)
    shard(model, "replicated", dataclasses.replace(ONE, device=find_device(recipe.engine.device)), dtype)
    return model.eval(), Processor.from_folder(folder)


def _measure_fill(recipe: Recipe, processor: Processor, folder: Path, epochs: float) -> float:
    """Return the fraction of the run's sequence positions that are not padding, from the first windows of its plan.

    A window of the plan is one epoch, to within a sequence. The index is written to the run folder for reuse.
    """
    plan = make_plan(recipe, open_stores(recipe), processor, folder=folder, ranks=ONE, say=lambda text: None)
    packs = [pack for number in range(min(math.ceil(epochs), _WINDOWS)) for pack in plan.window(number)]
    return sum(pack.num_tokens for pack in packs) / (len(packs) * recipe.stage.seq_len)


def _held_out(folder: Path) -> list[Record]:
    path = folder / split_data.FOLDER / split_data.HELD_OUT
    return list(open_random(str(path))) if path.is_file() else []


def _merge(vlm: VLM, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    vlm.save(folder)
    return folder


def _replace(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    return target


def _fixed_options(location: str, options: TuningOptions, num_held_out: int | None) -> dict[str, Any]:
    """Return the options that a resumed run must repeat.

    The device, save interval, time limit and number of ranks may change.
    """
    free = ("device", "save_every", "minutes", "num_ranks")
    values = {name: value for name, value in dataclasses.asdict(options).items() if name not in free}
    asked: dict[str, Any] = json.loads(json.dumps({"data": location, "num_held_out": num_held_out, **values}))
    return asked


def _check_folder(folder: Path, asked: dict[str, Any], num_ranks: int, *, resume: bool) -> int:
    """Return the number of ranks for which the run is planned: that of its beginning, also if it is resumed on others.

    Raise UserError if the folder cannot be used.
    """
    about = folder / ABOUT
    if not resume:
        if about.is_file():
            raise UserError(f"{folder} already has a fine-tuning run: resume it with --resume, or choose another --out")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not an empty folder: choose another --out")
        return num_ranks
    if not about.is_file():
        raise UserError(f"there is nothing to resume in {folder}")
    begun = json.loads(about.read_text(encoding="utf-8"))
    before = begun["asked"]
    changed = [name for name in asked if asked[name] != before.get(name)]
    if changed:
        raise UserError(f"{folder} was begun with another {changed[0].replace('_', '-')}: {before.get(changed[0])!r}")
    return int(begun["num_ranks"])


def _write_json(path: Path, values: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") or "(nothing)"


def _count_noun(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
