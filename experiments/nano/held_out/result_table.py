"""The table of a run: each task's figure with its 95 % interval beside the mark, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.nano.held_out.catalogue import Entry
from experiments.nano.held_out.scoring import admits
from vl2.eval.interval import bootstrap
from vl2.eval.task import Result, mean_score
from vl2.files import write_whole

FEW_ANSWERS = 12  # different ones: then always giving the most frequent is worth a column


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table, in percent."""

    task: str
    title: str
    count: int
    figure: float
    low: float
    high: float
    mark: float | None
    is_reached: bool | None  # by the figure, of every part where the mark is each part's
    always_one: float | None  # what the most frequent answer would reach
    parts: Mapping[str, tuple[int, float]]  # how many, and their figure


def row_of(entry: Entry, results: Sequence[Result]) -> Row:
    low, high = bootstrap(mean_score, results)
    figure = next(iter(mean_score(results).values()))
    names = sorted({result.part for result in results} - {""})
    members = {name: [result for result in results if result.part == name] for name in names}
    parts = {name: (len(some), 100 * sum(r.score for r in some) / len(some)) for name, some in members.items()}
    judged = [part for _, part in parts.values()] if entry.is_every_part else [figure]
    golds = Counter(json.dumps(result.gold, ensure_ascii=False) for result in results)
    return Row(
        task=entry.task.name,
        title=entry.task.title,
        count=len(results),
        figure=figure,
        low=low,
        high=high,
        mark=entry.mark,
        is_reached=None if entry.mark is None else min(judged) >= entry.mark,
        always_one=100 * max(golds.values()) / len(results) if 1 < len(golds) <= FEW_ANSWERS else None,
        parts=parts if len(parts) > 1 else {},
    )


def needless_admissions(found: Mapping[str, tuple[Entry, Sequence[Result]]]) -> tuple[int, int]:
    """Return how often "cannot tell" was said where the picture tells, and of how many questions."""
    asked = [result for entry, results in found.values() if entry.is_open for result in results]
    return sum(admits(result.answer) for result in asked), len(asked)


def write_table(
    folder: Path,
    model: str,
    found: Mapping[str, tuple[Entry, Sequence[Result]]],
    not_run: Mapping[str, str],
) -> str:
    """Write held-out.md and held-out.json; return the Markdown."""
    rows = [row_of(entry, results) for entry, results in found.values()]
    needless, asked = needless_admissions(found)
    lines = [
        f"# Held-out tests of {model}",
        "",
        "In percent, with the 95 % interval: exact, or by bootstrap over the pictures, groups or shops of items.",
        "",
        "| test | | items | reached | 95 % | one answer always | mark | |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        f"“Cannot tell” where the picture tells: {needless} of {asked} free answers.",
        "",
        *(f"Not run: {name}, {why}." for name, why in not_run.items()),
        *([""] if not_run else []),
        "| test | part | items | reached |",
        "|---|---|---|---|",
        *(f"| {r.task} | {name} | {n} | {figure:.1f} |" for r in rows for name, (n, figure) in r.parts.items()),
    ]
    text = "\n".join(lines) + "\n"
    write_whole(folder / "held-out.md", text)
    values = {"model": model, "rows": [asdict(row) for row in rows], "not_run": dict(not_run),
              "cannot_tell_elsewhere": {"said": needless, "asked": asked}}  # fmt: skip
    write_whole(folder / "held-out.json", json.dumps(values, ensure_ascii=False, indent=1) + "\n")
    return text


def _line(row: Row) -> str:
    mark = "" if row.mark is None else f"{row.mark:g}"
    reached = {None: "", True: "reached", False: "missed"}[row.is_reached]
    always = "" if row.always_one is None else f"{row.always_one:.0f}"
    interval = f"{row.low:.1f} to {row.high:.1f}"
    cells = (f"`{row.task}`", row.title, str(row.count), f"**{row.figure:.1f}**", interval, always, mark, reached)
    return f"| {' | '.join(cells)} |"
