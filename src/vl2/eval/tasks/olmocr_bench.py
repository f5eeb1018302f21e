"""olmOCR-bench: facts that must hold of the Markdown of a page of a PDF file.

    *.jsonl, pdfs/ (the hub's folder bench_data)    pdf, page, id, type, and the fields of the type

Each JSONL file is a category, and a page without a `baseline` test gets one, in a category of its own. The official
figure is the mean of the categories' pass rates. It needs a browser to compare formulas, which is not here: see
`vl2.eval.score.olmocr`. Unless every formula is written as the gold one, the headline is therefore the mean of the
categories without formulas, and the others are given as lower bounds.

Source: allenai/olmocr, `olmocr/bench` (commit f7cfe4c2). Pages are drawn with a longer side of 2,048 pixels, as the
program does for API models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vl2.data.raw_files import find_files, jsonl_rows
from vl2.errors import UserError
from vl2.eval.page_reading import PdfPage, page_protocols
from vl2.eval.public_data import Dataset, checked_rows
from vl2.eval.score.olmocr import passes
from vl2.eval.task import DataSource, Item, Result, Score, Task
from vl2.optional_imports import import_extra

PROMPT = (
    "Please provide a natural, plain text representation of the document, formatted in Markdown. Skip any headers and "
    "footers. For ALL mathematical expressions, use LaTeX notation with \\( and \\) for inline equations and \\[ and "
    "\\] for display equations. Convert any tables into Markdown format."
)
BASELINE = "baseline"
WITHOUT_FORMULAS = "categories without formulas"
LOWER_BOUND = "{} (lower bound: formulas are compared as text)"


def read(task: Task, source: DataSource) -> Iterator[Item]:
    for library in ("rapidfuzz", "fuzzysearch", "bs4"):
        import_extra(library, "documents", task.name)
    folder = source.folder(task)
    if not (folder / "pdfs").is_dir() and (folder / "bench_data").is_dir():
        folder = folder / "bench_data"
    pages: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for path in find_files(folder, "*.jsonl"):
        for where, test in checked_rows(jsonl_rows(path)):
            try:
                page = pages.setdefault((str(test["pdf"]), int(test["page"])), [])
                page.append({**test, "id": str(test["id"]), "type": str(test["type"]), "category": path.stem})
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{where}: a test needs pdf, page, id and type") from None
    with_baseline = {pdf for (pdf, _), tests in pages.items() if any(test["type"] == BASELINE for test in tests)}
    for pdf in dict.fromkeys(pdf for pdf, _ in pages):
        if pdf not in with_baseline:
            test = {"pdf": pdf, "page": 1, "id": f"{pdf}_baseline", "type": BASELINE, "category": BASELINE}
            pages.setdefault((pdf, 1), []).append(test)
    for (pdf, number), tests in pages.items():
        path = folder / "pdfs" / pdf
        if ".." in path.parts:
            raise UserError(f"{pdf} is not a file of {folder / 'pdfs'}")
        page_image = PdfPage(path, number)
        page_image.check()
        yield Item(
            id=f"{pdf}-{number}",
            question=PROMPT,
            images=(page_image,),
            gold=tests,
            part=tests[0]["category"],
        )


def score(item: Item, markdown: str) -> Score:
    """Score a page by the share of its tests that pass; a formula that only a browser can compare does not."""
    outcomes = [(test["category"], test["id"], passes(test, markdown)) for test in item.gold]
    measures: dict[str, float] = {}
    for category, _, outcome in outcomes:
        for name, value in (("passed", outcome is True), ("undecided", outcome is None)):
            measures[f"{name} {category}"] = measures.get(f"{name} {category}", 0.0) + value
    failed = [id for _, id, outcome in outcomes if outcome is not True]
    passed = len(outcomes) - len(failed)
    read = f"{passed} of {len(outcomes)} tests pass" + (f"; failed: {', '.join(failed[:8])}" if failed else "")
    return Score(value=passed / len(outcomes), read=read, measures=measures)


def categories(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean pass rate of the categories, and each category's.

    If formulas are undecided, the mean is of the categories without such formulas and is named so.
    """
    counts: dict[str, int] = {}
    for result in results:
        for test in result.gold:
            counts[test["category"]] = counts.get(test["category"], 0) + 1
    rates: dict[str, float] = {}
    bounds: dict[str, float] = {}
    for category, count in sorted(counts.items()):
        rate = 100 * sum(result.measures.get(f"passed {category}", 0.0) for result in results) / count
        is_open = any(result.measures.get(f"undecided {category}") for result in results)
        (bounds if is_open else rates)[category] = rate
    mean = sum(rates.values()) / len(rates) if rates else 0.0
    if not bounds:
        return {"score": mean, **rates}
    return {WITHOUT_FORMULAS: mean, **rates, **{LOWER_BOUND.format(name): rate for name, rate in bounds.items()}}


TASK = Task(
    name="olmocr_bench",
    title="olmOCR-bench: facts about the text, order, tables and formulas of PDF pages",
    layout="reads *.jsonl (pdf, page, id, type, ...) and pdfs/, also in bench_data/",
    folders=("olmocr_bench", "olmOCR-bench", "olmocr-bench"),
    read=read,
    protocols=page_protocols(
        score,
        "The mean share of tests that pass, over categories. Formulas are compared as text: not the official figure.",
        PROMPT,
    ),
    hub=Dataset("allenai/olmOCR-bench", ("bench_data/*.jsonl", "bench_data/pdfs/**")),
    metric=categories,
)
