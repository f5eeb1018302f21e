"""The command group `vl2 eval`: `run` measures a model; `list`, `show`, `compare` and `report` need no model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vl2.cli.flags import ModelFlags, OptionalInt, OptionalText, print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.eval.task import DataSource


Folder = Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class DataSourceFlags:
    """Where the data lie."""

    data: Folder = None
    """the benchmark's folder, or one that holds several of them by name; `hub` downloads the public copy"""
    split: OptionalText = None
    """another part than the one that is usually reported, as the files name it"""
    fonts: Folder = None
    """fonts for drawn texts; those of the system by default"""

    def data_source(self) -> DataSource:
        from vl2.eval.task import DataSource

        return DataSource(
            data=None if self.data is None else Path(self.data),
            split=self.split,
            fonts=None if self.fonts is None else Path(self.fonts),
        )


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    """Run tasks. Killed at any time, the same command goes on where it stopped.

    Every task gets a folder in --out with results.jsonl (a line per item), report.md and report.html.
    On a CPU it computes in float32 unless --dtype says otherwise.
    With torchrun the items are shared among the processes.

    Examples:
      vl2 eval run count_objects presence --out eval/
      vl2 eval run nlvr sroie_fields --data data/ --limit 200 --out eval/
      vl2 eval run mmmu --protocol vlmevalkit --data MMMU/ --model ./deepseek-vl2-small --out eval/
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TASK...")]
    """tasks; `vl2 eval list` shows them"""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """where results and reports are written"""
    source: DataSourceFlags = field(default_factory=DataSourceFlags)
    protocol: OptionalText = None
    """paper, vlmevalkit, lmms-eval, official or deepseek-ocr; by default the one that gives the published figure"""
    limit: OptionalInt = None
    """only so many items: a sample spread over all parts, the same each time; a larger one holds a smaller one"""
    whole: bool = False
    """also the items that nlvr, sroie_*, wikitables and detect_photos keep for training"""
    batch_size: int = 8
    """items decoded together; in float32 it changes the time, never the answers"""
    max_new_tokens: OptionalInt = None
    """end an answer after this many tokens; the protocol's own by default"""
    judge_url: OptionalText = None
    """an OpenAI-compatible endpoint for answers that rules cannot read, such as http://localhost:8000/v1"""
    judge_model: str = "gpt-4o-mini"
    """the judge's name at that endpoint; its key is taken from OPENAI_API_KEY"""
    model: ModelFlags = field(default_factory=ModelFlags)
    json: bool = False
    """print the figures as JSON"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """print nothing but the figures"""

    def run(self) -> None:
        from vl2.eval.choose_items import check_whole, choose, first_item
        from vl2.eval.judge import endpoint_judge
        from vl2.eval.report import write_reports
        from vl2.eval.run_task import EvalOptions, ranks_of_environment, run_task
        from vl2.eval.task_catalog import find_task

        if not self.tasks:
            raise UserError("say which tasks to run; `vl2 eval list` shows them")
        tasks = [find_task(name) for name in self.tasks]
        source = replace(self.source.data_source(), whole=self.whole)
        rank, world_size = ranks_of_environment()
        options = EvalOptions(
            protocol=self.protocol,
            limit=self.limit,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            judge=endpoint_judge(self.judge_url, self.judge_model) if self.judge_url else None,
            quiet=self.quiet,
            rank=rank,
            world_size=world_size,
        )
        for task in tasks:  # report errors before the model is loaded
            task.protocol(self.protocol)
            check_whole(task, source)
            if first_item(task, source) is None:
                raise UserError(
                    f"{task.name} has no items in {source.data}{choose(task, source, None).about_left_out()}"
                )
        flags = self._flags(world_size)
        flags.check()
        cache_tokens = self.batch_size * flags.context(quiet=self.quiet)
        vlm = flags.load(quiet=self.quiet, cache_tokens=cache_tokens)
        for task in tasks:
            run_task(vlm, task, source, Path(self.out) / task.name, options, model=self.model.model)
        if rank == 0:
            written = write_reports(Path(self.out), {task.name: task for task in tasks}, source)
            if self.json:
                print_json([report.to_dict() for report in written])
            else:
                print("\n".join(report.line() for report in written))

    def _flags(self, world_size: int) -> ModelFlags:
        """Return the model's flags with this process's own GPU, and with float32 on a CPU unless --dtype is given.

        In bfloat16 a matrix product of many rows is rounded differently from one of few rows, and that can decide
        between two almost equally likely tokens. So an answer would depend on the items that are decoded with it.
        """
        import torch

        from vl2.infer.vlm import choose_device

        flags = self.model
        if world_size > 1 and flags.device in ("auto", "cuda") and torch.cuda.is_available():
            flags = replace(flags, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        if flags.dtype == "auto" and choose_device(flags.device).type == "cpu":
            flags = replace(flags, dtype="float32")
        return flags


@dataclass(frozen=True, kw_only=True)
class EvalList:
    """List the tasks with their protocols.

    Examples:
      vl2 eval list
      vl2 eval list --json
    """

    json: bool = False
    """print JSON instead of lines"""

    def run(self) -> None:
        from vl2.eval.task_catalog import TASKS

        if self.json:
            print_json(
                [
                    {"name": t.name, "title": t.title, "protocols": list(t.protocols), "layout": t.layout}
                    for t in TASKS.values()
                ]
            )
            return
        for task in TASKS.values():
            print(f"{task.name:18} {task.title} [{', '.join(task.protocols)}]")


@dataclass(frozen=True, kw_only=True)
class EvalShow:
    """Show the exact prompts of a task, and how the answer is read and scored. With data, of its first item.

    Examples:
      vl2 eval show count_objects
      vl2 eval show mmmu --protocol vlmevalkit --data benchmarks/
      vl2 eval show chartqa --data benchmarks/ --answer "14 %"
    """

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """a task; `vl2 eval list` shows them"""
    protocol: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """only this one: paper, vlmevalkit, lmms-eval, official, deepseek-ocr"""
    answer: OptionalText = None
    """show how this answer to it is read and scored"""
    source: DataSourceFlags = field(default_factory=DataSourceFlags)

    def run(self) -> None:
        from vl2.eval.task_catalog import describe, find_task

        task = find_task(self.task)
        if self.protocol is not None:
            task.protocol(self.protocol)
        print(describe(task, self.source.data_source(), only=self.protocol, answer=self.answer))


@dataclass(frozen=True, kw_only=True)
class EvalCompare:
    """Compare two runs of the same tasks item by item: B less A, with a 95 % interval and the p of chance alone.

    Examples:
      vl2 eval compare eval-before/ eval-after/
      vl2 eval compare eval-a/nlvr eval-b/nlvr --json
    """

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """a folder of runs, or one run"""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """another, of the same tasks"""
    json: bool = False
    """print JSON instead of lines"""

    def run(self) -> None:
        from vl2.eval.compare import check_same_items, check_same_test, compare
        from vl2.eval.results import find_runs, read_results, read_run
        from vl2.eval.task import mean_score
        from vl2.eval.task_catalog import find_task

        runs = [{read_run(folder).task: folder for folder in find_runs(Path(name))} for name in (self.a, self.b)]
        shared = [name for name in runs[0] if name in runs[1]]
        if not shared:
            raise UserError(f"{self.a} and {self.b} have no task in common")
        found: list[dict[str, Any]] = []
        for name in shared:
            task, (id_a, id_b) = find_task(name), [read_run(run[name]) for run in runs]
            check_same_test(id_a, id_b)
            first, second = (read_results(run[name]) for run in runs)
            check_same_items(first, second)
            metric = task.metric_of(id_a.protocol)
            if task.merge is not None:
                metric, first, second = mean_score, task.merge(first), task.merge(second)
            made = compare(
                metric,
                first,
                second,
                scale=task.scale,
                is_mean=task.is_mean,
                is_same_model=all(
                    getattr(id_a, name) == getattr(id_b, name) for name in ("weights", "arithmetic", "tiling")
                ),
            )
            found.append(
                {
                    "task": name,
                    "items": made.items,
                    "a": made.figure_a,
                    "b": made.figure_b,
                    "difference": made.difference,
                    "interval": list(made.interval),
                    "p_bootstrap": made.p_bootstrap,
                    "p_mcnemar": made.p_mcnemar,
                    "better_in_b": list(made.better_in_b),
                    "worse_in_b": list(made.worse_in_b),
                }
            )
        if self.json:
            print_json(found)
        else:
            print("\n".join(map(_compared, found)))


def _compared(c: dict[str, Any]) -> str:
    low, high = c["interval"]
    exact = c["p_mcnemar"]
    tests = f"p {exact:.3g} (McNemar, exact)" if exact is not None else f"p {c['p_bootstrap']:.3g} (bootstrap)"
    return (
        f"{c['task']}: {c['a']:.1f} -> {c['b']:.1f}, {c['difference']:+.1f} [{low:+.1f}, {high:+.1f}], {tests}; "
        f"{len(c['better_in_b'])} better, {len(c['worse_in_b'])} worse of {c['items']}"
    )


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Write the reports of finished runs again, without a model. Give the same --data for the pictures.

    Examples:
      vl2 eval report eval/ --data benchmarks/
      vl2 eval report eval/ --json
    """

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """a folder of runs, or one run"""
    source: DataSourceFlags = field(default_factory=DataSourceFlags)
    json: bool = False
    """print the figures as JSON"""

    def run(self) -> None:
        from vl2.eval.report import write_reports
        from vl2.eval.task_catalog import TASKS

        written = write_reports(Path(self.out), TASKS, self.source.data_source())
        if self.json:
            print_json([report.to_dict() for report in written])
        else:
            print("\n".join(report.line() for report in written))


EVAL_COMMANDS = {
    "run": EvalRun,
    "list": EvalList,
    "show": EvalShow,
    "compare": EvalCompare,
    "report": EvalReport,
}


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model: the paper's benchmarks from local files, and tests drawn on the spot. See docs/evaluation.md.

    Examples:
      vl2 eval list
      vl2 eval show docvqa
      vl2 eval run count_objects presence --out eval/
      vl2 eval run docvqa chartqa --data benchmarks/ --model ./deepseek-vl2-tiny --out eval/
      vl2 eval compare eval-before/ eval-after/

    `vl2 eval COMMAND --help` says more.
    """

    command: (
        Annotated[EvalRun, tyro.conf.subcommand("run")]
        | Annotated[EvalList, tyro.conf.subcommand("list")]
        | Annotated[EvalShow, tyro.conf.subcommand("show")]
        | Annotated[EvalCompare, tyro.conf.subcommand("compare")]
        | Annotated[EvalReport, tyro.conf.subcommand("report")]
    )

    def run(self) -> None:
        self.command.run()
