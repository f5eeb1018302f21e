"""The command `vl2 finetune`, which trains an adapter or a model on a user's data and scores it before and after."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vl2.cli.flags import OptionalInt, OutputFlags, print_json
from vl2.errors import UserError
from vl2.lora.spec import TARGETS, Target
from vl2.train.adapter_options import AdapterOptions, BaseKind
from vl2.train.finetune.options import Compute, TuningOptions
from vl2.train.stage import Freezable, Part, freezes_vision

if TYPE_CHECKING:
    from vl2.train.finetune.finetuning import TuningPlan, TuningResult
    from vl2.train.ranks import Ranks

_TIMEOUT_S = 1800.0  # how long a rank waits for another before it fails
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalFolder = Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class AdapterFlags:
    """The adapter, with --method lora or qlora."""

    rank: Annotated[int, tyro.conf.arg(metavar="INT")] = 16
    """more learns more, and is larger"""
    alpha: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 32.0
    """the adapter is scaled by alpha / rank"""
    dropout: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 0.0
    rank_stabilised: bool = False
    """scale by alpha / sqrt(rank), for high ranks"""
    targets: tuple[Target, ...] = TARGETS
    """what it adapts; without vision and projector, less time and memory, but it sees no better than before"""
    base: BaseKind = "nf4"
    """how qlora holds the frozen weights: 4 or 8 bits"""
    adapter: OptionalFolder = None
    """go on from this adapter: rank, alpha and targets are its own"""


@dataclass(frozen=True, kw_only=True)
class ScheduleFlags:
    """How long, how fast, and what stays as it is."""

    epochs: OptionalFloat = None
    """by default from the size of the data: 30 up to 100 records, 4 for 1,000, little more than 1 for 100,000"""
    steps: OptionalInt = None
    """so many steps instead of epochs"""
    to_the_end: bool = False
    """do not stop when the held-out loss no longer falls; the weights with the lowest loss are kept all the same"""
    batch_size: Annotated[int, tyro.conf.arg(metavar="INT")] = 16
    """records per step, on average"""
    seq_len: OptionalInt = None
    """tokens of a packed sequence; made to fit the batch by default"""
    learning_rate: OptionalFloat = None
    """2e-4 for an adapter, 5e-5 for preferences, 2e-5 for all weights"""
    freeze: Annotated[tuple[Freezable, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """parts that stay: vision, projector, language; of the encoder of the DeepSeek-OCR family also sam,
    convolutions, and clip or query_encoder"""
    vision_rate: OptionalFloat = None
    """of the encoder, as a multiple of the learning rate; a tenth where its weights are trained"""
    projector_rate: OptionalFloat = None
    """of the projector, as a multiple"""
    train_prompt: bool = False
    """train on the questions too, not on answers only"""


@dataclass(frozen=True, kw_only=True)
class PreferenceFlags:
    """Preference optimization (DPO): records have a `rejected` answer beside the chosen one."""

    preference: bool = False
    """train an adapter to prefer the chosen answers to the rejected ones"""
    beta: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 0.1
    """how strongly it is held to the model without the adapter"""
    label_smoothing: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 0.0
    """the share of pairs that may be in the wrong order"""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where and how it runs."""

    held_out: OptionalInt = None
    """records to score on instead of training; by default a tenth: at least 8 or a quarter, at most 64"""
    max_new_tokens: Annotated[int, tyro.conf.arg(metavar="INT")] = 128
    """of the answers that are scored"""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N"""
    compute: Compute = "auto"
    """auto takes bfloat16 on a GPU"""
    recompute: bool = False
    """compute activations again in the backward pass: less memory, more time"""
    save_every: Annotated[int, tyro.conf.arg(metavar="INT")] = 200
    """steps between checkpoints"""
    minutes: OptionalFloat = None
    """save and stop after so many; --resume goes on"""
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 0


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune a model on your own data, and score it before and after on a part held out.

    DATA is a table of questions and answers (CSV, TSV or JSONL) beside its images, a folder with one, LLaVA's JSON, or
    records. Bad rows are named and left out. docs/finetuning.md says more.

    Examples:
      vl2 finetune ./receipts --out tuned
      vl2 finetune train.csv --out tuned --model ./deepseek-vl2-tiny --rank 32 --epochs 5
      vl2 finetune pairs.jsonl --out tuned --preference
      vl2 finetune llava.json --out tuned --model ./deepseek-vl2-small --method qlora --merge
      vl2 finetune set.parquet --out tuned --model ./deepseek-vl2-tiny --method full --freeze vision
      torchrun --nproc-per-node 8 --no-python vl2 finetune set.parquet --out tuned --model ./deepseek-vl2-tiny
      vl2 ask "What is the total?" -i new.png --model ./deepseek-vl2-tiny --adapter tuned/adapter
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """file, folder, glob or URL"""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
    """a new folder for all that comes of it"""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"], metavar="NAME")] = "nano"
    """nano (built in), tiny, small or base (released), a checkpoint folder, or a hub id"""
    method: Literal["lora", "qlora", "full"] = "lora"
    """an adapter; an adapter over weights held in few bits; all weights"""
    merge: bool = False
    """write the whole model with the adapter added in, too"""
    resume: bool = False
    """go on where it was stopped"""
    dry_run: bool = False
    """check the data and say what would be trained, and leave nothing behind"""
    adapter_flags: Annotated[AdapterFlags, tyro.conf.arg(name="adapter")] = field(default_factory=AdapterFlags)
    schedule: ScheduleFlags = field(default_factory=ScheduleFlags)
    preference: Annotated[PreferenceFlags, tyro.conf.arg(name="")] = field(default_factory=PreferenceFlags)
    run_flags: Annotated[RunFlags, tyro.conf.arg(name="run")] = field(default_factory=RunFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.train.finetune.finetuning import finetune
        from vl2.train.ranks import join

        if self.run_flags.held_out is not None and self.run_flags.held_out < 0:
            raise UserError(f"held-out must not be negative, got {self.run_flags.held_out}")
        if self.merge and self.method == "full":
            raise UserError("--merge is for adapters: --method full writes the whole model anyway")
        ranks = join(self.run_flags.device)
        if self.dry_run:
            with TemporaryDirectory() as scratch:
                planned = self._plan(Path(scratch) / "run", ranks)
                if self.output.json and ranks.is_first:
                    print_json(plan_to_dict(planned))
            return
        planned = self._plan(Path(self.out), ranks)
        tuned = finetune(
            planned,
            resume=self.resume,
            merge=self.merge,
            max_new_tokens=self.run_flags.max_new_tokens,
            quiet=self.output.quiet,
        )
        if self.output.json and ranks.is_first:
            print_json(tuned.to_dict())
        elif ranks.is_first and tuned.ended == "finished" and not self.output.quiet:
            self._report(tuned)
        if tuned.ended in ("interrupted", "terminated"):
            sys.exit(130 if tuned.ended == "interrupted" else 143)

    def options(self) -> TuningOptions:
        flags, schedule, run = self.adapter_flags, self.schedule, self.run_flags
        adapter = AdapterOptions(
            method="none" if self.method == "full" else self.method,
            rank=flags.rank,
            alpha=flags.alpha,
            dropout=flags.dropout,
            rank_stabilised=flags.rank_stabilised,
            targets=flags.targets,
            base=flags.base,
            start=flags.adapter or "",
        )
        if self.method == "full" and flags != AdapterFlags():
            raise UserError("--method full trains no adapter: --rank, --targets and the like are for lora and qlora")
        from vl2.checkpoint.resolve import hub_id

        return TuningOptions(
            model=hub_id(self.model),
            adapter=adapter,
            frozen=schedule.freeze,
            rates=self._rates(),
            learning_rate=schedule.learning_rate,
            epochs=schedule.epochs,
            objective="preference" if self.preference.preference else "next_token",
            beta=self.preference.beta,
            label_smoothing=self.preference.label_smoothing,
            stops_early=not schedule.to_the_end,
            steps=schedule.steps,
            batch_size=schedule.batch_size,
            seq_len=schedule.seq_len,
            mask_prompt=not schedule.train_prompt,
            device=run.device,
            compute=run.compute,
            activation_checkpointing=run.recompute,
            save_every=run.save_every,
            minutes=run.minutes,
            seed=run.seed,
        )

    def _rates(self) -> Mapping[Part, float]:
        from vl2.train.finetune.options import VISION_RATE

        given = {"vision": self.schedule.vision_rate, "projector": self.schedule.projector_rate}
        if given["vision"] is None and self.method == "full" and not freezes_vision(self.schedule.freeze):
            given["vision"] = VISION_RATE
        parts: tuple[Part, ...] = ("vision", "projector")
        return {part: rate for part in parts if (rate := given[part]) is not None}

    def _plan(self, folder: Path, ranks: Ranks) -> TuningPlan:
        """Plan the run on the first rank, and return the plan on all."""
        from vl2.train.finetune.finetuning import plan
        from vl2.train.ranks import on_first_rank

        options = replace(self.options(), num_ranks=ranks.size)

        def say(text: str) -> None:
            print(f"vl2: {text}", file=sys.stderr)

        def make_plan() -> TuningPlan:
            held_out = self.run_flags.held_out
            return plan(self.data, folder, options, num_held_out=held_out, resume=self.resume, say=say)

        planned = on_first_rank(ranks, _TIMEOUT_S, make_plan)
        if not self.output.quiet and ranks.is_first:
            for line in planned.lines():
                print(line, file=sys.stderr)
        return planned

    def _report(self, tuned: TuningResult) -> None:
        from vl2.train.finetune.finetuning import ANSWERS, score_rows

        if tuned.before is not None and tuned.after is not None:
            for name, old, new in score_rows(tuned.before, tuned.after):
                print(f"{name:12} {old:>8} -> {new}")
            print(f"answers      {tuned.folder / ANSWERS}")
        print(f"trained      {tuned.trained}")
        if tuned.merged is not None:
            print(f"merged       {tuned.merged}")
        if tuned.is_unfinished:
            print("unfinished   the held-out loss was still falling; this goes on from here:")
            print(f"             {self._going_on(tuned)}")

    def _going_on(self, tuned: TuningResult) -> str:
        """Return the command that trains the result further on the same data, with the same records held out."""
        words = ["vl2", "finetune", self.data, "--out", f"{str(tuned.folder).rstrip('/')}-2"]
        if self.method == "full":
            words += ["--method", "full", "--model", str(tuned.trained)]
        else:
            words += ["--method", self.method] if self.method != "lora" else []
            words += ["--model", self.model] if self.model != "nano" else []
            words += ["--adapter", str(tuned.trained)]
        words += ["--preference"] if self.preference.preference else []
        words += ["--seed", str(self.run_flags.seed)] if self.run_flags.seed else []
        words += ["--held-out", str(self.run_flags.held_out)] if self.run_flags.held_out is not None else []
        return shlex.join(words)


def plan_to_dict(planned: TuningPlan) -> dict[str, object]:
    from dataclasses import asdict

    return {"data": asdict(planned.data), "size": planned.size.to_dict(), "steps": planned.num_steps}
