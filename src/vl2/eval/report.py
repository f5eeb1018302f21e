"""What a run says: figures with their uncertainty, the paper's beside them, and the samples to look at.

`report.md` is short and `report.html` holds the samples, failures first. The folder of several runs gets both too, with
one line for each finished run in it, whichever call made it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.answering import REFUSED
from vl2.eval.catalogue import TASKS
from vl2.eval.interval import Interval, bootstrap
from vl2.eval.published import SIZES, Row, column, nearest_size, published
from vl2.eval.report_page import Line, Sample, index_page, run_page
from vl2.eval.results import RESULTS, RunId, find_runs, read_results, read_run, write_whole
from vl2.eval.rows import has_text
from vl2.eval.run import limited, scan_items, tiling_text
from vl2.eval.task import Item, Result, Task, Where
from vl2.process.tiling import Tiling

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
    refused: int  # items that could not be asked
    unanswered: int  # items whose gold answer is not in the data

    @property
    def headline(self) -> tuple[str, float]:
        return next(iter(self.figures.items()))

    @property
    def comparable(self) -> bool:
        """Tell whether the figure may stand beside the paper's."""
        return bool(self.paper()) and not self.differences() and not self.unanswered

    def differences(self) -> list[str]:
        """Return why the figure is not of the published test, in words."""
        task, run = self.task, self.run
        found = []
        if run.protocol != task.published_by:
            found.append(f"by protocol {task.published_by}")
        published_split = task.published_split or task.split
        if (run.split or task.split) != published_split:
            found.append(f"of split {published_split}")
        if run.limit is not None:
            found.append("of all items")
        return found + self._changed_settings() + self._missing_answers()

    def _changed_settings(self) -> list[str]:
        if self.run.protocol != self.task.published_by:
            return []  # which is told, and has settings of its own
        way, found = self.task.ways[self.run.protocol], []
        if self.run.max_new_tokens != way.max_new_tokens:
            found.append(f"of answers of up to {way.max_new_tokens} tokens")
        if self.run.tiling != (tiling := tiling_text(Tiling(), way.max_tiles)):
            found.append(f"with tiling {tiling}")
        return found

    def _missing_answers(self) -> list[str]:
        undecided = ["with a judge for all that rules cannot read"] if self.undecided else []
        return undecided + (["with no item left out"] if self.refused else [])

    def paper(self) -> dict[str, float]:
        """Return the figures of the three published sizes, the nearest to the model first."""
        name, nearest = self.task.published, nearest_size(self.run.parameters)
        sizes = (nearest, *(size for size in SIZES if size != nearest))
        found = {size: published(name, size) for size in sizes} if name else {}
        return {size: figure for size, figure in found.items() if figure is not None}

    def line(self) -> str:
        name, figure = self.headline
        low, high = self.interval
        text = (
            f"{self.task.name} ({self.run.protocol}): {name} {figure:.1f} [{low:.1f}, {high:.1f}], {self.items} items"
        )
        if self.unanswered:
            return f"{text}; the data have no gold answers for {self.unanswered} of them: the figure means nothing"
        if self.paper():
            text += "; paper " + ", ".join(f"{size} {value:g}" for size, value in self.paper().items())
        if self.refused:
            text += f"; {self.refused} could not be asked and count as wrong"
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
            "comparable": self.comparable,
            "undecided": self.undecided,
            "cut_off": self.cut_off,
            "refused": self.refused,
            "unanswered": self.unanswered,
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
        refused=sum(r.finish_reason == REFUSED for r in results),
        unanswered=sum(not has_text(r.gold) for r in results),
    )


def write_reports(out: Path, tasks: Mapping[str, Task], where: Where) -> list[Report]:
    """Write the reports of the finished runs in a folder whose task is among `tasks`, and return them.

    The page of the folder has all its finished runs. Without its data a report has no pictures.
    """
    folders = [folder for folder in find_runs(out) if (folder / RESULTS).is_file()]
    if not folders:
        raise UserError(f"no run in {out} is finished: start it again with the same --out")
    written, others = [], []
    for folder in folders:
        run = read_run(folder)
        if run.task not in tasks:
            if run.task in TASKS:
                others.append(make_report(TASKS[run.task], run, read_results(folder)))
            continue
        task = tasks[run.task]
        results = read_results(folder)
        report = make_report(task, run, results)
        shown = chosen(results)
        items = pictured(task, where, run, {r.id for r in shown})
        samples = [Sample(result=result, item=items.get(result.id)) for result in shown]
        write_whole(folder / "report.md", markdown(report))
        index = "../report.html" if out not in folders else None
        page = run_page(run.task, facts(report), tables(report), samples, total=len(results), index=index)
        write_whole(folder / "report.html", page)
        written.append(report)
    if out not in folders:
        shown_all = sorted([*written, *others], key=lambda r: list(TASKS).index(r.task.name))
        write_whole(out / "report.md", markdown_of_all(shown_all))
        write_whole(out / "report.html", index_page([_line_of(r) for r in shown_all]))
    return written


def _line_of(report: Report) -> Line:
    return Line(
        task=report.task.name,
        title=report.task.title,
        figure=report.headline[1],
        interval=report.interval,
        scale=float(report.task.unit.split()[-1]) if report.task.unit.startswith("of ") else 100.0,
        items=report.items,
        protocol=report.run.protocol,
        paper=", ".join(f"{size} {value:g}" for size, value in report.paper().items()),
        note="another test than the paper's" if report.paper() and not report.comparable else "",
    )


def chosen(results: Sequence[Result]) -> list[Result]:
    """Return the results that a page shows: the worst first, and some of the best after them."""
    ranked = sorted(results, key=lambda r: r.score)  # stable: of equals the earlier item
    if len(ranked) <= MAX_SAMPLES:
        return ranked
    best = [r for r in ranked[WORST:] if r.score == ranked[-1].score][: MAX_SAMPLES - WORST]
    return ranked[:WORST] + best


def pictured(task: Task, where: Where, run: RunId, ids: set[str]) -> dict[str, Item]:
    """Return the items of some ids, with their pictures; none where the data are not here or are not the run's."""
    if where.data is None and not task.is_drawn:
        return {}
    found: dict[str, Item] = {}

    def read() -> Iterator[Item]:
        for item in limited(task, replace(where, split=run.split), run.limit):
            if item.id in ids:
                found[item.id] = item
            yield item

    try:
        # All of them: other data with the same ids would show other pictures beside the answers.
        is_same = scan_items(read())[1] == run.data
        why = "the data are not those of the run"
    except UserError as error:
        is_same, why = False, str(error)
    if not is_same:
        print(f"{task.name}: the report has no pictures: {why}", file=sys.stderr)
    return found if is_same else {}


def facts(report: Report) -> dict[str, str]:
    """Return what the head of a report says."""
    run, (name, figure), (low, high) = report.run, report.headline, report.interval
    said = {
        "task": report.task.title,
        name: f"{figure:.1f}{unit(report)}, 95 % interval {low:.1f} to {high:.1f}",
        "items": f"{report.items}" + ("" if run.limit is None else ", the first ones"),
        "model": f"{run.model}, {_millions(run.parameters)} parameters (weights {run.weights}, {run.arithmetic})",
        "protocol": run.protocol + _about_protocol(report),
    }
    if report.paper():
        (nearest, figure), *rest = report.paper().items()
        others = ", ".join(f"{size} {value:g}" for size, value in rest)
        said["paper"] = f"{figure:g} by {nearest}, the nearest in size; {others}"
        if report.differences():
            said["paper"] += f". Not the same test: the published figures are {' and '.join(report.differences())}"
    if report.unanswered:
        said["gold"] = f"the data have no gold answers for {report.unanswered} items: the figure means nothing"
    if run.judge is not None:
        unread = f"; {report.undecided} answers that it did not read count as wrong" if report.undecided else ""
        said["judge"] = f"{run.judge}{unread}"
    elif report.undecided:
        said["judge"] = f"none: {report.undecided} answers need one and count as wrong (give --judge-url)"
    if report.refused:
        said["refused"] = f"{report.refused} items could not be asked and count as wrong"
    if report.cut_off:
        said["cut off"] = f"{report.cut_off} answers reached {run.max_new_tokens} tokens"
    return said


def _about_protocol(report: Report) -> str:
    if report.task.published_by is None:
        return ""
    return " (gives the published figure)" if report.run.protocol == report.task.published_by else ""


def unit(report: Report) -> str:
    return " %" if report.task.unit == "%" else f" {report.task.unit}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def parts(report: Report) -> dict[str, float]:
    """Return the figures below the headline."""
    return dict(list(report.figures.items())[1:])


def tables(report: Report) -> dict[str, dict[str, float]]:
    """Return what can be unfolded: the other figures, and the paper's table with this run in its place."""
    found = {"more figures": parts(report)}
    if report.paper():
        peers = {_named(row): figure for row, figure in column(report.task.published or "")}
        ours = {f"this run: {report.run.model}": report.headline[1]}
        found["models in the paper's table"] = dict(sorted((peers | ours).items(), key=lambda pair: -pair[1]))
    return {name: figures for name, figures in found.items() if figures}


def _named(row: Row) -> str:
    name = f"DeepSeek-VL2 {row.model}" if row.model in SIZES else row.model
    return name if row.activated in ("", "-") else f"{name} ({row.activated})"


def markdown(report: Report) -> str:
    lines = [f"# {report.task.name}", ""]
    lines += [f"- {name}: {text}" for name, text in facts(report).items()]
    if parts(report):
        lines += ["", "| part | figure |", "|---|---|"]
        lines += [f"| {name} | {figure:.1f} |" for name, figure in parts(report).items()]
    return "\n".join(lines) + "\n"


def markdown_of_all(reports: Sequence[Report]) -> str:
    lines = ["# Evaluation", "", "| task | protocol | figure | 95 % | items | paper |"]
    lines.append("|---|---|---|---|---|---|")
    for r in reports:
        paper = ", ".join(f"{size} {value:g}" for size, value in r.paper().items()) or "-"
        paper += " (another test)" if r.paper() and not r.comparable else ""
        name, figure = r.headline
        interval = f"{r.interval[0]:.1f} to {r.interval[1]:.1f}"
        cells = (r.task.name, r.run.protocol, f"{name} {figure:.1f}", interval, str(r.items), paper)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
