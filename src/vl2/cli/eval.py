"""`vl2 eval`: the commands that measure a model, and those that need none: list, show, compare, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from vl2.cli.eval_run import DataSourceFlags, EvalRun
from vl2.cli.flags import OptionalText, print_json
from vl2.errors import UserError


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
        from vl2.eval.catalogue import TASKS

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
    """only this one: paper, vlmevalkit, lmms-eval"""
    answer: OptionalText = None
    """show how this answer to it is read and scored"""
    source: DataSourceFlags = field(default_factory=DataSourceFlags)

    def run(self) -> None:
        from vl2.eval.catalogue import describe, find_task

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
        from vl2.eval.catalogue import find_task
        from vl2.eval.compare import check_same_items, check_same_test, compare
        from vl2.eval.results import find_runs, read_results, read_run
        from vl2.eval.task import mean_score

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
                is_same_model=(id_a.weights, id_a.arithmetic) == (id_b.weights, id_b.arithmetic),
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
        from vl2.eval.catalogue import TASKS
        from vl2.eval.report import write_reports

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
