"""Pages to one document: headings get levels, and what a page or a column cut in two is joined."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from vl2.documents.block import DocumentBlock, DocumentPage
from vl2.documents.furniture import mark_furniture
from vl2.documents.lines import add_line
from vl2.documents.table import join_tables, read_table

HEADING_SIZE = 1.12  # times the size of the body
MAX_HEADING_CHARS = 200
MAX_LEVEL = 6
FOOTNOTE_SIZE = 0.92
_END = re.compile(r"[.!?:;。！？：；…]['\"”’)\]»」』]*$")
_SECTION = re.compile(
    r"(?:(?:chapter|section|appendix|part|kapitel)\s)?[A-Z]?\d{0,2}(?:\.\d{1,2}){0,4}\.?\s", re.IGNORECASE
)
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")


def join_pages(pages: Sequence[DocumentPage]) -> list[DocumentBlock]:
    """Return the blocks of the document. Pages must be in order; the types of furniture are set here."""
    marked = mark_furniture(pages)
    body = _body_size(marked)
    blocks: list[DocumentBlock] = []
    for page in marked:
        for block in page.blocks:
            blocks.append(_typed(block, body, page))
    return _joined(_with_levels(blocks))


def _body_size(pages: Sequence[DocumentPage]) -> float | None:
    """Return the size in points of most characters of text layers; None if there are none."""
    sizes: Counter[float] = Counter()
    for page in pages:
        for block in page.blocks:
            if block.font_pt is not None and block.type in ("paragraph", "list_item"):
                sizes[block.font_pt] += len(block.text)
    return sizes.most_common(1)[0][0] if sizes else None


def _typed(block: DocumentBlock, body: float | None, page: DocumentPage) -> DocumentBlock:
    """Return a block of a text layer as a heading or a footnote, if its font and place say so."""
    if body is None or block.font_pt is None or block.type not in ("paragraph", "list_item"):
        return block
    text = f"{block.marker} {block.text}".strip()
    if " ... " in text and text[-1].isalnum():  # a line of a table of contents
        return block
    if len(text) <= MAX_HEADING_CHARS and re.search(r"\w", text):
        is_large = block.font_pt >= HEADING_SIZE * body
        is_bold = (
            block.is_bold
            and block.font_pt >= 0.98 * body
            and (not _END.search(text) or _SECTION.match(text) is not None)
        )
        if (is_large and block.type == "paragraph") or (is_bold and (block.type == "paragraph" or block.marker)):
            return replace(block, type="heading", text=text, marker="", level=None)
    box = block.places[0].box_px
    is_low = box is not None and page.size_px is not None and box[1] > 0.6 * page.size_px[1]
    if is_low and block.font_pt <= FOOTNOTE_SIZE * body and re.match(r"(?:\d{1,3}|[*†‡§¶])\s?\w", text):
        return replace(block, type="footnote", text=text, marker="", level=None)
    return block


def _with_levels(blocks: Sequence[DocumentBlock]) -> list[DocumentBlock]:
    """Give headings of text layers a level by their size, the largest first, and by whether they are bold."""
    styles = sorted({_style(block) for block in blocks if block.type == "heading" and block.font_pt is not None})
    levels = {style: min(MAX_LEVEL, 1 + number) for number, style in enumerate(styles)}
    return [
        replace(block, level=levels[_style(block)]) if block.type == "heading" and block.font_pt is not None else block
        for block in blocks
    ]


def _style(block: DocumentBlock) -> tuple[float, bool]:
    return -round(2 * (block.font_pt or 0.0)) / 2, not block.is_bold


def _joined(blocks: Sequence[DocumentBlock]) -> list[DocumentBlock]:
    """Join paragraphs, list items and tables with what goes on after a break of the column or the page."""
    joined: list[DocumentBlock] = []
    last: int | None = None  # index of the last block of running text or table
    for block in blocks:
        if block.is_furniture or block.type in ("footnote", "figure", "caption"):
            joined.append(block)
            continue
        if last is not None:
            whole = _join(joined[last], block)
            if whole is not None:
                joined[last] = whole
                continue
        joined.append(block)
        last = len(joined) - 1
    return joined


def _join(first: DocumentBlock, second: DocumentBlock) -> DocumentBlock | None:
    """Return one block if the second goes on where a page or a column cut the first."""
    if first.source != second.source or not _is_after_break(first, second):
        return None
    if first.type == "table" and second.type == "table" and first.places[-1].page != second.page:
        ours, theirs = read_table(first.text), read_table(second.text)
        table = None if ours is None or theirs is None else join_tables(ours, theirs)
        return None if table is None else _as_one(first, second, table.to_html())
    if first.type not in ("paragraph", "list_item") or second.type != "paragraph":
        return None
    if first.font_pt is not None and second.font_pt is not None and abs(first.font_pt - second.font_pt) > 0.6:
        return None
    before, after = first.text.rstrip(), second.text.lstrip()
    if not before or not after or _END.search(before) or not _continues(before, after):
        return None
    return _as_one(first, second, add_line(before, after))


def _is_after_break(first: DocumentBlock, second: DocumentBlock) -> bool:
    """Tell whether a page or a column ended between two blocks."""
    a, b = first.places[-1], second.places[0]
    if a.page != b.page:
        return b.page == a.page + 1
    return a.box_px is not None and b.box_px is not None and b.box_px[1] < a.box_px[1] and b.box_px[0] > a.box_px[0]


def _continues(before: str, after: str) -> bool:
    """Tell whether a text goes on in the middle of a sentence."""
    if re.search(r"\w[-\u2010]$", before):
        return after[0].isalnum()
    if _UNSPACED.match(before[-1]) and _UNSPACED.match(after[0]):
        return True
    return after[0].islower() or before[-1] in ",，、" or (after[0] in "([“‘«" and after[1:2].islower())


def _as_one(first: DocumentBlock, second: DocumentBlock, text: str) -> DocumentBlock:
    confidence = first.confidence
    if first.confidence is not None and second.confidence is not None:
        lengths = max(1, len(first.text)), max(1, len(second.text))
        confidence = (first.confidence * lengths[0] + second.confidence * lengths[1]) / sum(lengths)
    return replace(
        first,
        text=text,
        places=first.places + second.places,
        confidence=confidence,
        figures=first.figures + second.figures,
    )
