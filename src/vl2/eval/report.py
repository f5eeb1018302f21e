"""What a run says: figures with their uncertainty, the paper's beside them, and the samples to look at.

`report.md` is short and `report.html` holds the samples, failures first. The folder of several runs gets both too, with
one line for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vl2.eval.interval import Interval, bootstrap
from vl2.eval.published import published
from vl2.eval.report_page import Sample, index_page, run_page
from vl2.eval.results import RunId, find_runs, read_results, read_run, write_whole
from vl2.eval.run import limited
from vl2.eval.task import Item, Result, Task, Where

MAX_SAMPLES = 200  # in a page; three quarters of them the worst
WORST = 150


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run in figures."""

    task: Task
    run: RunId
    figures: Mapping[str, float]  # the headline first
    interval: Interval  # 95 %, of the headline
    items: int
    undecided: int  # answers that a judge would have read
    cut_off: int  # answers that reached the longest length

    @property
    def headline(self) -> tuple[str, float]:
        return next(iter(self.figures.items()))

    @property
    def comparable(self) -> bool:
        """Tell whether the figure may stand beside the paper's."""
        is_whole = self.run.limit is None and self.run.split is None
        return self.task.published is not None and is_whole and self.run.protocol == self.task.published_by

    def paper(self) -> dict[str, float]:
        """Return the figures of the three published sizes."""
        name = self.task.published
        found = {size: published(name, size) for size in ("tiny", "small", "base")} if name else {}
        return {size: figure for size, figure in found.items() if figure is not None}

    def line(self) -> str:
        name, figure = self.headline
        low, high = self.interval
        text = (
            f"{self.task.name} ({self.run.protocol}): {name} {figure:.1f} [{low:.1f}, {high:.1f}], {self.items} items"
        )
        if self.paper():
            text += "; paper " + ", ".join(f"{size} {value:g}" for size, value in self.paper().items())
        return text + (f"; {self.undecided} answers need a judge and count as wrong" if self.undecided else "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.name,
            "protocol": self.run.protocol,
            "model": self.run.model,
            "items": self.items,
            "figures": dict(self.figures),
            "interval": list(self.interval),
            "paper": self.paper(),
            "undecided": self.undecided,
            "cut_off": self.cut_off,
        }


def make_report(task: Task, run: RunId, results: Sequence[Result]) -> Report:
    return Report(
        task=task,
        run=run,
        figures=task.metric(results),
        interval=bootstrap(task.metric, results),
        items=len(results),
        undecided=sum(r.is_undecided for r in results),
        cut_off=sum(r.finish_reason == "length" for r in results),
    )


def write_reports(out: Path, tasks: Mapping[str, Task], where: Where) -> list[Report]:
    """Write the reports of every run in a folder whose task is among `tasks`; without its data it has no pictures."""
    written = []
    for folder in find_runs(out):
        run = read_run(folder)
        if run.task not in tasks:
            continue
        task = tasks[run.task]
        results = read_results(folder)
        report = make_report(task, run, results)
        shown = chosen(results)
        items = pictured(task, where, run, {r.id for r in shown})
        samples = [Sample(result=result, item=items.get(result.id)) for result in shown]
        write_whole(folder / "report.md", markdown(report))
        write_whole(folder / "report.html", run_page(facts(report), parts(report), samples, len(results)))
        written.append(report)
    if out not in find_runs(out):
        write_whole(out / "report.md", markdown_of_all(written))
        write_whole(
            out / "report.html", index_page([(r.task.name, facts(r), r.headline[1], r.interval) for r in written])
        )
    return written


def chosen(results: Sequence[Result]) -> list[Result]:
    """Return the results that a page shows: the worst first, and some of the best after them."""
    ranked = sorted(results, key=lambda r: r.score)  # stable: of equals the earlier item
    if len(ranked) <= MAX_SAMPLES:
        return ranked
    best = [r for r in ranked[WORST:] if r.score == ranked[-1].score][: MAX_SAMPLES - WORST]
    return ranked[:WORST] + best


def pictured(task: Task, where: Where, run: RunId, ids: set[str]) -> dict[str, Item]:
    """Return the items of some ids, with their pictures; none where the data are not here."""
    found: dict[str, Item] = {}
    if where.data is None and not task.is_drawn:
        return found
    for item in limited(task, replace(where, split=run.split), run.limit):
        if item.id in ids:
            found[item.id] = item
        if len(found) == len(ids):
            break
    return found


def facts(report: Report) -> dict[str, str]:
    """Return what the head of a report says."""
    run, (name, figure), (low, high) = report.run, report.headline, report.interval
    said = {
        "task": report.task.title,
        name: f"{figure:.2f}{unit(report)} (95 %: {low:.2f} to {high:.2f})",
        "items": str(report.items),
        "model": f"{run.model} (weights {run.weights})",
        "protocol": run.protocol + _about_protocol(report),
    }
    if report.paper():
        said["paper"] = ", ".join(f"{size} {value:g}" for size, value in report.paper().items())
        if not report.comparable:
            said["paper"] += " (not the same test: another protocol, or not all items)"
    if report.undecided:
        said["judge"] = f"{report.undecided} answers need a judge and count as wrong: give --judge-url"
    if report.cut_off:
        said["cut off"] = f"{report.cut_off} answers reached {run.max_new_tokens} tokens"
    return said


def _about_protocol(report: Report) -> str:
    if report.task.published_by is None:
        return ""
    return " (gives the published figure)" if report.run.protocol == report.task.published_by else ""


def unit(report: Report) -> str:
    return " %" if report.task.unit == "%" else f" {report.task.unit}"


def parts(report: Report) -> dict[str, float]:
    """Return the figures below the headline."""
    return dict(list(report.figures.items())[1:])


def markdown(report: Report) -> str:
    lines = [f"# {report.task.name}", ""]
    lines += [f"- {name}: {text}" for name, text in facts(report).items()]
    if parts(report):
        lines += ["", "| part | figure |", "|---|---|"]
        lines += [f"| {name} | {figure:.2f} |" for name, figure in parts(report).items()]
    return "\n".join(lines) + "\n"


def markdown_of_all(reports: Sequence[Report]) -> str:
    lines = ["# Evaluation", "", "| task | protocol | figure | 95 % | items | paper: tiny, small, base |"]
    lines.append("|---|---|---|---|---|---|")
    for r in reports:
        paper = ", ".join(f"{value:g}" for value in r.paper().values()) or "-"
        name, figure = r.headline
        interval = f"{r.interval[0]:.1f} to {r.interval[1]:.1f}"
        cells = (r.task.name, r.run.protocol, f"{name} {figure:.1f}", interval, str(r.items), paper)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
