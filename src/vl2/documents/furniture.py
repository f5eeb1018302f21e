"""Headers, footers and page numbers, found by what repeats on pages at one place.

A block near the upper or lower edge is furniture of the page if one of these holds:

1. The model said so.
2. It is nothing but a page number.
3. The same text, digits aside, stands at the same height on another page: on at least half of the pages, or on three.
4. It begins or ends with a number that differs from the page's by the same amount on at least two other pages.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vl2.documents.block import BlockType, DocumentBlock, DocumentPage

EDGE = 0.13  # of the page's height
NUMBER_EDGE = 0.1
NEAR = 0.012
MANY_PAGES = 3
MAX_CHARS = 200
_PAGE_NUMBER = re.compile(
    r"(?:(?:page|seite|p\.|第)\s{0,2})?[-–—(\[]?\s{0,2}(?:\d{1,4}|[ivxlc]{1,7})\s{0,2}[-–—)\]]?"
    r"(?:\s{0,2}(?:of|von|/|页|頁)\s{0,2}\d{0,4})?",
    re.IGNORECASE,
)
_NUMERAL = re.compile(r"\d+|\b[ivxlc]{1,7}$|^[ivxlc]{1,7}\b")
_OUTER_NUMBER = re.compile(r"^(\d{1,4})\b|\b(\d{1,4})$")


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A block near an edge. `y` is the height of its middle as a part of the page's."""

    page: int  # index among the pages
    block: int  # index in the page
    y: float
    pattern: str
    offsets: tuple[int, ...]  # numbers at its ends, less the page's number

    @property
    def is_top(self) -> bool:
        return self.y < 0.5


def mark_furniture(pages: Sequence[DocumentPage]) -> list[DocumentPage]:
    """Return the pages with the types of headers, footers and page numbers set."""
    candidates = [found for index, page in enumerate(pages) for found in _candidates(index, page)]
    by_height: dict[int, list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_height[int(candidate.y / NEAR)].append(candidate)
    types: dict[tuple[int, int], BlockType] = {}
    for candidate in candidates:
        strip = int(candidate.y / NEAR)
        near = [other for at in (strip - 1, strip, strip + 1) for other in by_height.get(at, ())]
        kind = _type_of(candidate, near, pages)
        if kind is not None:
            types[candidate.page, candidate.block] = kind
    return [
        replace(page, blocks=tuple(
            replace(block, type=types[index, number], level=None) if (index, number) in types else block
            for number, block in enumerate(page.blocks)
        ))
        for index, page in enumerate(pages)
    ]  # fmt: skip


def _candidates(index: int, page: DocumentPage) -> list[_Candidate]:
    """Return the blocks near the edges; of a page without boxes, the first and the last."""
    found = []
    texts = [number for number, block in enumerate(page.blocks) if not block.is_furniture]
    for number, block in enumerate(page.blocks):
        if block.is_furniture or block.type in ("figure", "table", "code") or len(block.text) > MAX_CHARS:
            continue
        y = _height(block, page)
        if y is None:
            y = 0.0 if number in texts[:1] else 1.0 if number in texts[-1:] else 0.5
        if min(y, 1 - y) > EDGE:
            continue
        text = " ".join(f"{block.marker} {block.text}".split())
        numbers = [int(a or b) for a, b in _OUTER_NUMBER.findall(text)]
        found.append(
            _Candidate(
                page=index, block=number, y=y, pattern=_NUMERAL.sub("#", text.casefold()),
                offsets=tuple(value - page.number for value in numbers),
            )
        )  # fmt: skip
    return found


def _height(block: DocumentBlock, page: DocumentPage) -> float | None:
    box = block.places[0].box_px
    return None if box is None or page.size_px is None else (box[1] + box[3]) / 2 / page.size_px[1]


def _type_of(
    candidate: _Candidate, candidates: Sequence[_Candidate], pages: Sequence[DocumentPage]
) -> BlockType | None:
    block = pages[candidate.page].blocks[candidate.block]
    text = " ".join(f"{block.marker} {block.text}".split())
    has_boxes = block.places[0].box_px is not None
    same_place = [
        other for other in candidates
        if other.page != candidate.page and abs(other.y - candidate.y) <= NEAR
    ]  # fmt: skip
    same_text = {other.page for other in same_place if other.pattern == candidate.pattern}
    numbered = defaultdict[int, set[int]](set)
    for other in same_place:
        for offset in other.offsets:
            numbered[offset].add(other.page)
    count = 1 + len(same_text)
    repeats = count >= MANY_PAGES or (count >= 2 and 2 * count >= len(pages))
    counts_up = any(len(numbered[offset]) >= 2 for offset in candidate.offsets)
    if _PAGE_NUMBER.fullmatch(text) and (
        (min(candidate.y, 1 - candidate.y) <= NUMBER_EDGE and has_boxes) or repeats or counts_up
    ):
        return "page_number"
    if repeats or counts_up:
        return "page_header" if candidate.is_top else "page_footer"
    return None
