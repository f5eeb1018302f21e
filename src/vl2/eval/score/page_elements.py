"""Cut a model's Markdown into text, formulas and tables as OmniDocBench does, and bring them to its normal forms.

Inline formulas are read twice: as formulas, and as a part of their paragraph. A text is compared without white space
and punctuation, and with its inline formulas in Unicode. Tables that are written in LaTeX are not read: the benchmark
converts them with LaTeXML. Of tables in Markdown, which its prompt does not ask for, it loses cells with a colon and
the line before the table; so does this.

Source: `utils.py` and `omnidocbench.py` of OmniDocBench in VLMEvalKit (commit e8e78f05), without their code.
Golden: tests/golden/scorers/omnidocbench.json.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from typing import Any, Literal

from vl2.optional_imports import import_extra

Kind = Literal["text", "formula", "table", "latex table"]

_WHAT = "scoring pages"
_PICTURE = re.compile(r"!\[.*?\]\(.*?\)")
_FENCES = ((re.compile(r"^```markdown\n?", re.MULTILINE), ""), (re.compile(r"```\n?$", re.MULTILINE), ""))
_REPEATED = (
    (re.compile(r"_{4,}"), "____"), (re.compile(" {4,}"), "    "), (re.compile(r"([^a-zA-Z0-9])\1{10,}"), r"\1\1\1\1"),
)  # fmt: skip
_FORMULA = re.compile(r"\$\$(.*?)\$\$|\\\[(.*?)\\\]|\$(.*?)\$|\\\((.*?)\\\)", re.DOTALL)
_DOLLARS = re.compile(r"\$\$(.*?)\$\$|\$(.*?)\$|\\\((.*?)\\\)", re.DOTALL)
_INLINE = re.compile(r"\$(.*?)\$|\\\((.*?)\\\)")
_ROW = re.compile(r"\|\s*.*?\s*\|\n", re.DOTALL)
_LOST_CELL = re.compile("---|:")
_CODE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_LATEX_TABLE = re.compile(r"\\begin\{table\}.*?\\end\{table\}|\\begin\{tabular\}.*?\\end\{tabular\}", re.DOTALL)
_TABLE_TAG = re.compile(r"<table[^>]*>|</table>")
_LATEX_STYLE = (r"\\title\s*\{\s*(.*?)\s*\}", r"\\text\s*\{\s*(.*?)\s*\}", r"\\section\*?\{\s*(.*?)\s*\}")
_NOT_COMPARED = re.compile(r"[^\w\u4e00-\u9fff]")
_FORMULA_COMMANDS = (
    "\\mathbf", "\\mathrm", "\\mathnormal", "\\mathit", "\\mathbb", "\\mathcal", "\\mathscr", "\\mathfrak", "\\mathsf",
    "\\mathtt", "\\textbf", "\\text", "\\boldmath", "\\boldsymbol", "\\operatorname", "\\bm", "\\symbfit",
    "\\mathbfcal", "\\symbf", "\\scriptscriptstyle", "\\notag", "\\setlength", "\\coloneqq", "\\space", "\\thickspace",
    "\\thinspace", "\\medspace", "\\nobreakspace", "\\negmedspace", "\\quad", "\\qquad", "\\enspace",
    "\\substackw", " ",
)  # fmt: skip
_FORMULA_PARTS = (r"\\tag\{.*?\}", r"\\hspace\{.*?\}", r"\\begin\{.*?\}", r"\\end\{.*?\}", r"\\arraycolsep.*?\}")
_TABLE_ATTRIBUTES = re.compile(r' (?:style|height|width|align|class)=".*?"')
_TABLE_TAGS = re.compile(r"</?(?:sup|sub|span|div|p)>|<colgroup>.*?</colgroup>")


@dataclass(frozen=True, kw_only=True)
class Element:
    """A part of an answer, and where it begins."""

    kind: Kind
    text: str
    position: int


def page_elements(markdown: str) -> list[Element]:
    """Return the parts of an answer in order. Tables in Markdown become HTML."""
    text = _PICTURE.sub("", markdown)
    for pattern, by in (*_FENCES, *_REPEATED):
        text = pattern.sub(by, text)
    found: list[Element] = []
    for start, end in [match.span() for match in _LATEX_TABLE.finditer(text)]:
        found.append(Element(kind="latex table", text=text[start:end], position=start))
        text = _blank(text, start, end)
    for start, end in _html_tables(text):
        found.append(Element(kind="table", text=text[start:end], position=start))
        text = _blank(text, start, end)
    formulas = list(_FORMULA.finditer(text))
    for match in formulas:
        formula, is_inline = _formula(match.group())
        found.append(Element(kind="formula", text=formula, position=match.start()))
        text = text if is_inline else _blank(text, *match.span())
    if len(_ROW.findall(text + "\n")) >= 2:
        text = _tables_to_html(text)
        for start, end in _html_tables(text):
            found.append(Element(kind="table", text=text[start:end], position=start))
            text = _blank(text, start, end)
    for match in list(_CODE.finditer(text)):
        found.append(Element(kind="text", text=match[2].strip(), position=match.start()))
        text = _blank(text, *match.span())
    found += _paragraphs(text)
    return sorted(found, key=lambda element: element.position)


def _blank(text: str, start: int, end: int) -> str:
    """Replace a part of a text by spaces, so that the positions of the rest stay."""
    return text[:start] + " " * (end - start) + text[end:]


def _html_tables(text: str) -> list[tuple[int, int]]:
    """Return start and end of the outermost tables that are closed."""
    found, depth, begin = [], 0, 0
    for tag in _TABLE_TAG.finditer(text):
        if tag.group() != "</table>":
            begin = tag.start() if depth == 0 else begin
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                found.append((begin, tag.end()))
    return found


def _formula(matched: str) -> tuple[str, bool]:
    r"""Return a formula without white space within `\[` and `\]`, and whether it is inline."""
    line = "".join(matched.split())
    dollars = _DOLLARS.search(line)
    if dollars is None:
        return line, False
    if dollars[1]:
        return _DOLLARS.sub(r"\\[\1\\]", line), False
    return _DOLLARS.sub(r"\\[\2\3\\]", line), True


def _tables_to_html(text: str) -> str:
    """Replace each block of lines with bars by an HTML table, in the form in which the program writes it."""
    lines: list[str] = []
    rows: list[str] = []
    for line in [*text.split("\n"), None]:
        row = line.strip() if line is not None else ""
        if row.startswith("|") and row.endswith("|") and len(row) > 1:
            lines = lines[:-1] if not rows else lines  # the line before a table is lost
            cells = [cell.strip() for cell in row.split("|")[1:-1]]
            kept = [f'      <td colspan="1" rowspan="1">{cell}</td>' for cell in cells if not _LOST_CELL.search(cell)]
            rows += ["    <tr>", *kept, "    </tr>"] if kept else [""]
            continue
        if rows:
            table = "\n".join(filter(None, rows))
            lines += ["", "", f'<table border="1" >\n{table}\n</table>', "", ""]
            rows = []
        lines += [line] if line is not None else []
    return "\n".join(lines)


def _paragraphs(text: str) -> Iterator[Element]:
    for style in _LATEX_STYLE:
        text = re.sub(style, r"\1", text, flags=re.DOTALL)
    parts = text.split("\n\n")
    parts = text.split("\n") if len(parts) == 1 else parts
    position = 0
    for part in parts:
        start, position = position, position + len(part)
        kept = "\n".join(line.strip() for line in part.strip().split("\n") if line.strip())
        if kept.startswith("$") and kept.endswith("$"):
            if kept.replace("$", "").strip():
                yield Element(kind="formula", text=kept, position=start)
        elif kept:
            yield Element(kind="text", text=kept, position=start)


def normal_text(text: str) -> str:
    """Return letters, digits and Chinese characters of a text, whose inline formulas are written in Unicode first."""
    latex = import_extra("pylatexenc.latex2text", "documents", _WHAT).LatexNodes2Text()
    pieces: list[tuple[int, int, str]] = []
    for match in _INLINE.finditer(text):
        formula = re.sub(r"\\([\\_&%^])", "", match[1] if match[1] is not None else match[2])
        if any(char in formula for char in "\\^_"):
            try:
                shown = latex.latex_to_text(formula + " " if formula.endswith("\\") else formula)
            except Exception:  # the parser's errors for broken LaTeX have no common base
                continue
            pieces.append((*match.span(), shown.strip()))
    for start, end, shown in reversed(pieces):
        text = text[:start] + shown + text[end:]
    for blank in ("\\t", "\\n", "\t", "\n", "/t", "/n"):
        text = text.replace(blank, "")
    return _NOT_COMPARED.sub("", text)


def normal_formula(text: str) -> str:
    """Return a formula in lower case, without fonts, spacing, tags and environments."""
    if (inside := re.search(r"\\\[(.+?)(?<!\\)\\\]", text)) is not None:
        text = inside[1].strip()
    for part in _FORMULA_PARTS:
        text = re.sub(part, "", text)
    text = text.strip(".")
    for command in _FORMULA_COMMANDS:
        text = text.replace(command, "")
    return text.lower()


def normal_table(html: str) -> str:
    """Return a table as a page for TEDS, with `<td>` for all cells and no styles; "" if there is no table."""
    if "<table" not in html.replace(" ", ""):
        return ""
    soup: Any = import_extra("bs4", "documents", _WHAT).BeautifulSoup(html, "html.parser")
    for cell in soup.find_all("th"):
        cell.name = "td"
    for wrapper in soup.find_all("thead"):
        wrapper.unwrap()
    for formula in soup.find_all("math"):
        formula.replace_with(f"${formula.get('alttext', '')}$")
    for wrapper in soup.find_all("span"):
        wrapper.unwrap()
    text = unicodedata.normalize("NFKC", unescape(str(soup)).replace("\n", "")).strip()
    text = "".join(re.findall(r"<table\b[^>]*>(.*)</table>", text, re.DOTALL | re.IGNORECASE))
    text = re.sub("</?tbody>", "", _TABLE_ATTRIBUTES.sub("", text))
    text = re.sub(r"\s+", " ", text)
    return _TABLE_TAGS.sub("", f'<html><body><table border="1" >{text}</table></body></html>')
