"""Make the report of a run: figures with confidence intervals, the paper's figures, and samples to inspect.

`report.md` is short; `report.html` shows samples, failures first. A folder of several runs gets both files too, with
one line for each finished run in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.choose_items import choose, left_out_text, scan_items
from vl2.eval.interval import Interval, bootstrap
from vl2.eval.public_data import has_text
from vl2.eval.published import SIZES, PublishedRow, column, published, size_of_count
from vl2.eval.report_page import IndexRow, ShownResult, index_page, run_page
from vl2.eval.results import RESULTS, RunId, find_runs, read_results, read_run
from vl2.eval.run_task import tiling_text
from vl2.eval.task import REFUSED, DataSource, Item, Result, Task, mean_score
from vl2.eval.task_catalog import TASKS
from vl2.files import write_whole
from vl2.process.tiling import Tiling

MAX_SAMPLES = 200  # samples on a page, of which WORST are the worst
WORST = 150


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The figures of one run."""

    task: Task
    run: RunId
    figures: Mapping[str, float]  # the headline first
    interval: Interval  # 95 %, of the headline
    items: int
    undecided: int  # answers that need a judge
    cut_off: int  # answers that reached the maximum length
    refused: int  # items that could not be asked
    unanswered: int  # items without a gold answer in the data

    @property
    def headline(self) -> tuple[str, float]:
        return next(iter(self.figures.items()))

    @property
    def comparable(self) -> bool:
        """Return whether the figure can be compared with the paper's: a released size and the same test."""
        return self.size is not None and self.task.published is not None and not self.differences()

    @property
    def size(self) -> str | None:
        """The released size that the model has."""
        if self.run.size is not None or self.run.scorer > 1:
            return self.run.size
        return size_of_count(self.run.parameters)  # old runs did not record the size

    def differences(self) -> list[str]:
        """Return the properties of the published figure that this run lacks, in words."""
        return self._other_split() + self._other_test()

    def _other_split(self) -> list[str]:
        """Return the difference in split, which is often unavoidable: test answers may be withheld."""
        published_split = self.task.published_split or self.task.split
        is_other = (self.run.split or self.task.split) != published_split
        return [f"of split {published_split}"] if is_other else []

    def _other_test(self) -> list[str]:
        found = []
        if self.run.protocol != self.task.published_by:
            found.append(f"by protocol {self.task.published_by}")
        if self.is_subset:
            found.append("of all items")
        return found + self._changed_settings() + self._missing_answers()

    @property
    def is_subset(self) -> bool:
        """Return whether items of the benchmark were not asked."""
        run = self.run
        is_cut = run.limit is not None and (run.available is None or self.items < run.available)
        return run.is_subset or (is_cut and not self.task.is_drawn)

    def _changed_settings(self) -> list[str]:
        if self.run.protocol != self.task.published_by:
            return []  # the other protocol is already reported, and has its own settings
        protocol, found = self.task.protocols[self.run.protocol], []
        if self.run.max_new_tokens != protocol.max_new_tokens:
            found.append(f"of answers of up to {protocol.max_new_tokens} tokens")
        if self.run.tiling != (tiling := tiling_text(Tiling(), protocol.max_tiles)):
            found.append(f"with tiling {tiling}")
        return found

    def _missing_answers(self) -> list[str]:
        undecided = ["with a judge for all that rules cannot read"] if self.undecided else []
        refused = ["with no item left out"] if self.refused else []
        return undecided + refused + (["with gold answers"] if self.unanswered else [])

    def paper(self) -> dict[str, float]:
        """Return the figures of the three published sizes, the model's own first.

        The result is empty for a model of another size, and for a run that differs from the published test in more
        than the split.
        """
        if self.size is None or self.task.published is None or self._other_test():
            return {}
        sizes = (self.size, *(size for size in SIZES if size != self.size))
        found = {size: published(self.task.published, size) for size in sizes}
        return {size: figure for size, figure in found.items() if figure is not None}

    def about_paper(self) -> str:
        """Return the paper's figures, or the reason why none is shown; "" for a task that is not in the paper."""
        if self.task.published is None:
            return ""
        if self.paper():
            (own, figure), *rest = self.paper().items()
            said = f"{figure:g} for {own}, the size of this model by its config.json; "
            said += ", ".join(f"{size} {value:g}" for size, value in rest)
            if self._other_split():
                said += f". Not the same test: the published figures are {' and '.join(self._other_split())}"
            return said
        if self.size is None:
            count = _millions(self.run.parameters)
            return f"no figure to compare with: the model has {count} parameters, which is none of the published sizes"
        return f"no figure to compare with: the published ones are {' and '.join(self.differences())}"

    def counted(self) -> str:
        """Return the number of items asked, and the number available if a limit was used."""
        is_cut = self.is_subset and self.run.available not in (None, self.items)
        return f"{self.items} of {self.run.available}" if is_cut else f"{self.items}"

    def about_items(self) -> str:
        """Return `counted`, and how the items were chosen."""
        if self.run.available is None and self.run.limit is not None and not self.task.is_drawn:
            return f"{self.items}, the first ones"  # old runs took the first items
        which = f", a sample spread over all parts (seed {self.run.seed})" if " of " in self.counted() else ""
        return self.counted() + which

    def about_left_out(self) -> str:
        flag = " (--whole asks all that can be asked)" if self.task.has_whole and not self.run.whole else ""
        return left_out_text(self.run.left_out) + flag if self.run.left_out else ""

    def line(self) -> str:
        """Return the result in one line for the terminal."""
        name, figure = self.headline
        low, high = self.interval
        text = f"{self.task.name} ({self.run.protocol}): {name} {figure:.1f} [{low:.1f}, {high:.1f}], "
        text += f"{self.counted()} items"
        if self.run.left_out:
            text += f"; left out: {self.about_left_out()}"
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
            "available": self.run.available,
            "left_out": dict(self.run.left_out),
            "size": self.size,
            "figures": dict(self.figures),
            "interval": list(self.interval),
            "paper": self.paper(),
            "comparable": self.comparable,
            "undecided": self.undecided,
            "cut_off": self.cut_off,
            "refused": self.refused,
            "unanswered": self.unanswered,
        }


def make_report(task: Task, run: RunId, results: Sequence[Result]) -> RunReport:
    metric = task.metric_of(run.protocol)
    return RunReport(
        task=task,
        run=run,
        figures=metric(results),
        interval=(
            bootstrap(mean_score, task.merge(results))
            if task.merge is not None
            else bootstrap(metric, results, scale=task.scale, is_mean=task.is_mean)
        ),
        items=len(results),
        undecided=sum(r.is_undecided for r in results),
        cut_off=sum(r.finish_reason == "length" for r in results),
        refused=sum(r.finish_reason == REFUSED for r in results),
        unanswered=sum(not has_text(r.gold) for r in results),
    )


def write_reports(out: Path, tasks: Mapping[str, Task], source: DataSource) -> list[RunReport]:
    """Write and return the reports of a folder's finished runs whose task is in `tasks`.

    The index page lists all finished runs of the folder. A report has no images if the data are not available. Raise
    UserError if no run is finished.
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
        shown = choose_samples(results)
        items = items_with_images(task, source, run, {r.id for r in shown})
        samples = [ShownResult(result=result, item=items.get(result.id)) for result in shown]
        write_whole(folder / "report.md", markdown(report))
        index = "../report.html" if out not in folders else None
        page = run_page(run.task, facts(report), tables(report), samples, total=len(results), index=index)
        write_whole(folder / "report.html", page)
        written.append(report)
    if out not in folders:
        shown_all = sorted([*written, *others], key=lambda r: list(TASKS).index(r.task.name))
        write_whole(out / "report.md", markdown_of_all(shown_all))
        write_whole(out / "report.html", index_page([_index_row(r) for r in shown_all]))
    return written


def _index_row(report: RunReport) -> IndexRow:
    return IndexRow(
        task=report.task.name,
        title=report.task.title,
        figure=report.headline[1],
        interval=report.interval,
        scale=report.task.scale,
        items=report.items,
        protocol=report.run.protocol,
        paper=", ".join(f"{size} {value:g}" for size, value in report.paper().items()),
        note=_note(report),
    )


def _note(report: RunReport) -> str:
    notes = []
    if report.is_subset and not report.task.is_drawn:
        notes.append("a part of the items")
    if report.paper() and not report.comparable:
        notes.append("another test than the paper's")
    return ", ".join(notes)


def choose_samples(results: Sequence[Result]) -> list[Result]:
    """Return the results that a page shows: the worst first, followed by some of the best."""
    ranked = sorted(results, key=lambda r: r.score)  # stable: ties stay in item order
    if len(ranked) <= MAX_SAMPLES:
        return ranked
    best = [r for r in ranked[WORST:] if r.score == ranked[-1].score][: MAX_SAMPLES - WORST]
    return ranked[:WORST] + best


def items_with_images(task: Task, source: DataSource, run: RunId, ids: set[str]) -> dict[str, Item]:
    """Return the items with these ids, for their images; none if the data are missing or not those of the run."""
    if source.data is None and not task.is_drawn:
        return {}
    found: dict[str, Item] = {}

    def read() -> Iterator[Item]:
        for item in choose(task, replace(source, split=run.split, whole=run.whole), run.limit).items():
            if item.id in ids:
                found[item.id] = item
            yield item

    try:
        # Hash all items: other data with the same ids would show wrong images beside the answers.
        is_same = scan_items(read())[1] == run.data
        why = "the data are not those of the run"
    except UserError as error:
        is_same, why = False, str(error)
    if not is_same:
        print(f"{task.name}: the report has no pictures: {why}", file=sys.stderr)
    return found if is_same else {}


def facts(report: RunReport) -> dict[str, str]:
    """Return the facts in the header of a report, by name."""
    run, (name, figure), (low, high) = report.run, report.headline, report.interval
    said = {
        "task": report.task.title,
        name: f"{figure:.1f}{unit(report)}, 95 % interval {low:.1f} to {high:.1f}",
        "items": report.about_items(),
        "model": f"{run.model}, {_millions(run.parameters)} parameters (weights {run.weights}, {run.arithmetic})",
        "protocol": run.protocol + _about_protocol(report),
    }
    if run.whole:
        said["whole"] = "also the items that are left out by default"
    if run.left_out:
        said["left out"] = report.about_left_out()
    if about := report.about_paper():
        said["paper"] = about
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


def _about_protocol(report: RunReport) -> str:
    return " (the published figure's)" if report.comparable else ""


def unit(report: RunReport) -> str:
    return " %" if report.task.unit == "%" else f" {report.task.unit}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def parts(report: RunReport) -> dict[str, float]:
    """Return the figures below the headline."""
    return dict(list(report.figures.items())[1:])


def tables(report: RunReport) -> dict[str, dict[str, float]]:
    """Return the collapsible tables: further figures, and the paper's table with this run inserted."""
    found = {"more figures": parts(report)}
    if report.comparable:
        peers = {_model_name(row): figure for row, figure in column(report.task.published or "")}
        ours = {f"this run: {report.run.model}": report.headline[1]}
        found["models in the paper's table"] = dict(sorted((peers | ours).items(), key=lambda pair: -pair[1]))
    return {name: figures for name, figures in found.items() if figures}


def _model_name(row: PublishedRow) -> str:
    name = f"DeepSeek-VL2 {row.model}" if row.model in SIZES else row.model
    return name if row.activated in ("", "-") else f"{name} ({row.activated})"


def markdown(report: RunReport) -> str:
    lines = [f"# {report.task.name}", ""]
    lines += [f"- {name}: {text}" for name, text in facts(report).items()]
    if parts(report):
        lines += ["", "| part | figure |", "|---|---|"]
        lines += [f"| {name} | {figure:.1f} |" for name, figure in parts(report).items()]
    return "\n".join(lines) + "\n"


def markdown_of_all(reports: Sequence[RunReport]) -> str:
    lines = ["# Evaluation", "", "| task | protocol | figure | 95 % | items | paper |"]
    lines.append("|---|---|---|---|---|---|")
    for r in reports:
        paper = ", ".join(f"{size} {value:g}" for size, value in r.paper().items()) or "-"
        paper += " (another test)" if r.paper() and not r.comparable else ""
        name, figure = r.headline
        interval = f"{r.interval[0]:.1f} to {r.interval[1]:.1f}"
        cells = (r.task.name, r.run.protocol, f"{name} {figure:.1f}", interval, r.counted(), paper)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
