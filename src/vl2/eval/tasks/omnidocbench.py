"""OmniDocBench: pages of nine kinds of documents in English and Chinese, converted to Markdown.

    OmniDocBench.json, images/ (the hub's)    page_info, layout_dets, extra
    OmniDocBench.tsv (VLMEvalKit's)    index, image, answer: the same as JSON

Figures are means over pages, as in the table of version 1.0, and similarities in percent: 100 less the edit distance.
The overall figure of version 1.5 needs CDM and is not given; see `vl2.eval.score.omnidocbench` for what else is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any

from vl2.data.json_stream import list_rows
from vl2.errors import UserError
from vl2.eval.page_reading import page_protocols
from vl2.eval.public_data import Dataset, checked_rows, images_of, read_rows
from vl2.eval.score.omnidocbench import MEASURES, measure_page
from vl2.eval.task import DataSource, Item, Result, Score, Task, mean_measure
from vl2.optional_imports import import_extra

FILE = "OmniDocBench.json"
LIBRARIES = ("bs4", "lxml", "pylatexenc", "rapidfuzz", "scipy")
# The benchmark's prompt, with the indentation of its source and the backslashes of its raw text.
PROMPT = r"""You are an AI assistant specialized in converting PDF images to Markdown format. Please follow these instructions for the conversion:

    1. Text Processing:
    - Accurately recognize all text content in the PDF image without guessing or inferring.
    - Convert the recognized text into Markdown format.
    - Maintain the original document structure, including headings, paragraphs, lists, etc.

    2. Mathematical Formula Processing:
    - Convert all mathematical formulas to LaTeX format.
    # - Enclose inline formulas with \( \). For example: This is an inline formula \( E = mc^2 \)
    - Enclose block formulas with \\[ \\]. For example: \[ \frac{-b \pm \sqrt{b^2 - 4ac}}{2a} \]

    3. Table Processing:
    - Convert tables to HTML format.
    - Wrap the entire table with <table> and </table>.

    4. Figure Handling:
    - Ignore figures content in the PDF image. Do not attempt to describe or convert images.

    5. Output Format:
    - Ensure the output Markdown document has a clear structure with appropriate line breaks between elements.
    - For complex layouts, try to maintain the original document's structure and format as closely as possible.

    Please strictly follow these guidelines to ensure accuracy and consistency in the conversion. Your task is to accurately convert the content of the PDF image into Markdown format without adding any extra explanations or comments.
    """  # noqa: E501


def read(task: Task, source: DataSource) -> Iterator[Item]:
    for library in LIBRARIES:
        import_extra(library, "documents", task.name)
    folder = source.folder(task)
    if (folder / FILE).is_file():
        for where, page in checked_rows(list_rows(folder / FILE)):
            name = PurePosixPath(str(_field(page, where, "page_info", "image_path"))).name
            yield _item(page, where, name, images_of(name, folder, name))
        return
    for row in read_rows(folder, ("OmniDocBench",), ("index", "image", "answer")):
        where = f"row {row['index']}"
        try:
            page = json.loads(row["answer"])
        except (TypeError, ValueError):
            raise UserError(f"{where}: the answer must be a page in JSON") from None
        yield _item(page, where, str(row["index"]), images_of(row["image"], folder, where))


def _item(page: Any, where: str, id: str, images: tuple[object, ...]) -> Item:
    attributes = _field(page, where, "page_info", "page_attribute")
    blocks = _field(page, where, "layout_dets")
    if not isinstance(blocks, list) or not all({"anno_id", "category_type"} <= {*block} for block in blocks):
        raise UserError(f"{where}: layout_dets must be blocks with anno_id and category_type")
    names = ("anno_id", "category_type", "order", "text", "latex", "html")
    kept = [{name: block[name] for name in names if name in block} for block in blocks]
    relations = (page.get("extra") or {}).get("relation", [])
    return Item(
        id=id,
        question=PROMPT,
        images=images,
        gold={"layout_dets": kept, "extra": {"relation": relations}},
        part=str(attributes.get("language", "")),
    )


def _field(page: Any, where: str, *names: str) -> Any:
    for name in names:
        if not isinstance(page, Mapping) or name not in page:
            raise UserError(f"{where}: a page needs {'.'.join(names)}")
        page = page[name]
    return page


def score(item: Item, markdown: str) -> Score:
    """Score a page by the mean of its measures, TEDS of the structure aside."""
    measures = measure_page(item.gold, markdown)
    counted = [value for name, value in measures.items() if "structure" not in name]
    read = ", ".join(f"{name} {value:.2f}" for name, value in measures.items())
    return Score(value=fmean(counted) if counted else 0.0, read=read, measures=measures)


def by_language(results: Sequence[Result]) -> dict[str, float]:
    """Return the measures of all pages, text first, then those of each language, in percent."""
    figures = _measures(results, "")
    for language in sorted({result.part for result in results} - {""}):
        figures |= _measures([result for result in results if result.part == language], f"{language}: ")
    return figures or {"text": 0.0}


def _measures(results: Sequence[Result], prefix: str) -> dict[str, float]:
    found = {name: mean_measure(results, name) for name in MEASURES}
    return {f"{prefix}{name}": 100 * value for name, value in found.items() if value is not None}


TASK = Task(
    name="omnidocbench",
    title="OmniDocBench: pages of documents as Markdown",
    layout="reads OmniDocBench.json and images/, or OmniDocBench.tsv",
    folders=("omnidocbench", "OmniDocBench"),
    read=read,
    protocols=page_protocols(
        score,
        "100 less the edit distance of text, formulas, tables and order by quick match, and TEDS; no CDM.",
        PROMPT,
    ),
    hub=Dataset("opendatalab/OmniDocBench", (FILE, "images/*")),
    metric=by_language,
)
