"""Score the Markdown of a page against its blocks: text, reading order, tables and boxes, each 0..1.

Both sides are cut into blocks: paragraphs, headings, list items and tables. A paragraph may run over several lines. If
an answer has no empty line, each of its lines is a block.

- `text`: 1 less the edit distance of all blocks but tables, over the larger lengths. Blocks are matched one to one for
  the least distance, wherever they stand.
- `order`: 1 less the edit distance of the order of the gold blocks in the answer, over their number. A gold block is
  found if its match has at least half of its text.
- `tables`: the mean TEDS of the gold tables, matched one to one for the highest; an extra table counts as 0.
- `boxes`: the mean IoU of the gold blocks' boxes with the answer's, matched one to one for the highest.

Running headers and footers count neither if they are given nor if they are left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

from vl2.eval.score.boxes import Box, iou
from vl2.eval.score.table_cells import CellGrid, html_tables, markdown_tables
from vl2.eval.score.teds import teds
from vl2.optional_imports import import_extra

_T = TypeVar("_T")
FOUND = 0.5  # the least similarity of a gold block that counts as found
IGNORED = 0.8  # the least similarity to a running header or footer of a block that is left out
_HTML_TABLE = re.compile(r"<table\b.*?</table>", re.IGNORECASE | re.DOTALL)
_ITEM = re.compile(r"(?:[-*+•·]|\d{1,3}[.)、])\s+")
_HEADING = re.compile(r"#{1,6}\s+")
_FENCE = re.compile(r"^```\w*\s*$", re.MULTILINE)
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_MARKS = re.compile(r"\*\*|__|</?(?:b|i|u|strong|em|center)>")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_TICKED, _OPEN = re.compile(r"\[[xX×]\]|[☑☒✓✔]"), re.compile(r"\[ ?\]|[☐□]")


@dataclass(frozen=True, kw_only=True)
class PageParts:
    """A page cut into blocks of text, in order, and its tables as HTML."""

    texts: tuple[str, ...]
    tables: tuple[str, ...]


def cut_page(markdown: str) -> PageParts:
    """Cut Markdown into blocks. Marks of headings, lists and emphasis are removed, and white space is collapsed."""
    text = _PICTURE.sub("", _FENCE.sub("", markdown))
    tables = [_as_html(table) for table in html_tables(text)]
    is_spaced = "\n\n" in re.sub(r"\n[^\S\n]+(?=\n)", "\n", _HTML_TABLE.sub("-", text).strip())
    text = _HTML_TABLE.sub("\n\n", text)
    tables += [_as_html(table) for table in markdown_tables(text)]
    blocks: list[str] = []
    is_open = False  # whether the next line continues the last block
    for line in map(str.strip, text.split("\n")):
        if not line or line.count("|") > 1:
            is_open = False
        elif is_open and is_spaced and not _ITEM.match(line) and not _HEADING.match(line):
            blocks[-1] = f"{blocks[-1]} {line}"
        else:
            blocks.append(line)
            is_open = not _HEADING.match(line)
    texts = [plain for block in blocks if (plain := plain_block(block))]
    return PageParts(texts=tuple(texts), tables=tuple(tables))


def plain_block(text: str) -> str:
    """Return a block's text: NFKC, without marks, with single spaces, and without any in Chinese text."""
    text = _HEADING.sub("", text, count=1) if _HEADING.match(text) else text
    text = _ITEM.sub("", text, count=1) if _ITEM.match(text) else text
    text = _OPEN.sub("[]", _TICKED.sub("[x]", _MARKS.sub("", text)))
    words = unicodedata.normalize("NFKC", text).split()
    return ("" if _CHINESE.search(text) else " ").join(words)


def _as_html(table: CellGrid) -> str:
    rows: dict[int, list[str]] = {}
    for cell in table.cells:
        spans = f' rowspan="{cell.num_rows}"' if cell.num_rows > 1 else ""
        spans += f' colspan="{cell.num_columns}"' if cell.num_columns > 1 else ""
        rows.setdefault(cell.row, []).append(f"<td{spans}>{escape(plain_block(cell.text))}</td>")
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows.values())
    return f"<html><body><table>{body}</table></body></html>"


def score_page(gold: PageParts, answer: PageParts, running: Sequence[str] = ()) -> dict[str, float]:
    """Return `text`, `order` and `tables` of an answer; without what the gold page does not have."""
    levenshtein = import_extra("rapidfuzz.distance.Levenshtein", "documents", "scoring pages")
    texts = [text for text in answer.texts if not _is_one_of(text, running, levenshtein.normalized_similarity)]
    scores: dict[str, float] = {}
    if gold.texts:
        pairs = _match(gold.texts, texts, levenshtein.distance)
        longest = sum(max(len(gold.texts[i]), len(texts[j])) for i, j in pairs)
        distance = sum(levenshtein.distance(gold.texts[i], texts[j]) for i, j in pairs)
        for side, used in ((gold.texts, {i for i, _ in pairs}), (texts, {j for _, j in pairs})):
            alone = sum(len(text) for index, text in enumerate(side) if index not in used)
            longest, distance = longest + alone, distance + alone
        scores["text"] = 1 - distance / longest
        found = {
            i: j for i, j in pairs if levenshtein.normalized_similarity(gold.texts[i], texts[j]) >= FOUND
        }  # fmt: skip
        said = sorted(found, key=lambda i: found[i])
        scores["order"] = 1 - levenshtein.distance(list(range(len(gold.texts))), said) / len(gold.texts)
    if gold.tables:
        pairs = _match(gold.tables, answer.tables, lambda one, other: 1 - teds(other, one))
        total = sum(teds(answer.tables[j], gold.tables[i]) for i, j in pairs)
        scores["tables"] = total / max(len(gold.tables), len(answer.tables))
    return scores


def score_boxes(gold: Sequence[Box], found: Sequence[Box]) -> float:
    """Return the mean IoU of the gold boxes with their matches."""
    pairs = _match(gold, found, lambda one, other: 1 - iou(one, other))
    return sum(iou(gold[i], found[j]) for i, j in pairs) / len(gold)


def _is_one_of(text: str, others: Sequence[str], similarity: Callable[[str, str], float]) -> bool:
    return any(similarity(text, plain_block(other)) >= IGNORED for other in others)


def _match(gold: Sequence[_T], answer: Sequence[_T], cost: Callable[[_T, _T], float]) -> list[tuple[int, int]]:
    """Return pairs of indices, one to one, with the least sum of costs."""
    if not gold or not answer:
        return []
    assign = import_extra("scipy.optimize", "documents", "scoring pages").linear_sum_assignment
    rows, columns = assign([[cost(one, other) for other in answer] for one in gold])
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]
