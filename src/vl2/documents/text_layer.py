"""The blocks of a PDF page from its text layer: tables and figures first, then the text of each column."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from vl2.documents.block import BlockPlace, BlockType, DocumentBlock, DocumentPage
from vl2.documents.columns import reading_order
from vl2.documents.lines import Line, join_lines, to_lines, vocabulary_of
from vl2.documents.paragraphs import TextBlock, to_blocks
from vl2.documents.pdf_graphics import BoxPt
from vl2.documents.pdf_page import PdfContent, Word
from vl2.documents.pdf_tables import find_aligned, ruled_tables
from vl2.process.grounding import BoxPx
from vl2.process.tiling import Size

BACKGROUND = 0.8  # a picture that covers more of the page lies behind the text
MAX_TEXT_IN_FIGURE = 0.25  # of its area that words cover; what has more is text on a background


@dataclass(frozen=True, kw_only=True)
class _Region:
    """A part of the page that is one thing in the reading order: a word, a table or a figure."""

    box: BoxPt
    word: Word | None = None
    block: DocumentBlock | None = None


def layer_page(content: PdfContent, number: int, size_px: Size) -> DocumentPage:
    """Return the page that the text layer makes. `size_px` is the size of the rendered page, for the boxes."""
    scale = size_px[0] / content.size_pt[0], size_px[1] / content.size_pt[1]
    blocks: list[DocumentBlock] = []
    turns = Counter(word.turn for word in content.words)
    for turn, _ in turns.most_common() or [(0, 0)]:  # what is written sideways comes after the rest
        words = [word for word in content.words if word.turn == turn]
        if turn == 0:
            found = _upright_blocks(replace(content, words=tuple(words)))
        else:
            shown = [replace(word, box=_turn(word.box, -turn, content.size_pt)) for word in words]
            upright = _upright_blocks(PdfContent(size_pt=content.size_pt, words=tuple(shown)))
            found = [(block, _turn(box, turn, content.size_pt)) for block, box in upright]
        blocks += [
            replace(block, places=(BlockPlace(page=number, box_px=_in_pixels(box, scale)),)) for block, box in found
        ]
    if content.pictures and 0 not in turns:
        figures, _ = _figures(replace(content, words=()))
        blocks += [
            replace(region.block, places=(BlockPlace(page=number, box_px=_in_pixels(region.box, scale)),))
            for region in figures
            if region.block is not None
        ]
    return DocumentPage(number=number, blocks=tuple(blocks), source="text layer", size_px=size_px)


def _in_pixels(box: BoxPt, scale: tuple[float, float]) -> BoxPx:
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]


def _turn(box: BoxPt, degrees: int, size: tuple[float, float]) -> BoxPt:
    """Return a box after the page is turned clockwise about its middle."""
    angle = math.radians(degrees)
    cos, sin = round(math.cos(angle)), round(math.sin(angle))
    middle = size[0] / 2, size[1] / 2
    corners = [(x - middle[0], y - middle[1]) for x in (box[0], box[2]) for y in (box[1], box[3])]
    turned = [(x * cos - y * sin + middle[0], x * sin + y * cos + middle[1]) for x, y in corners]
    return min(x for x, _ in turned), min(y for _, y in turned), max(x for x, _ in turned), max(y for _, y in turned)


def _upright_blocks(content: PdfContent) -> list[tuple[DocumentBlock, BoxPt]]:
    tables = ruled_tables(content.words, content.rules)
    regions = [_Region(box=t.box, block=_block("table", t.table.to_html())) for t in tables]
    words = [word for word in content.words if not any(_holds(t.box, word.box) for t in tables)]
    pictures = [p for p in content.pictures if not any(_covered(p.box, t.box) > 0.5 for t in tables)]
    figures, words = _figures(replace(content, words=tuple(words), pictures=tuple(pictures)))
    regions += figures
    regions += [_Region(box=word.box, word=word) for word in words]
    if not regions:
        return []
    sizes = Counter[float]()
    for word in words:
        sizes[round(word.size_pt, 1)] += len(word.text)
    em = sizes.most_common(1)[0][0] if sizes else 10.0
    vocabulary = vocabulary_of(to_lines(words))
    blocks: list[tuple[DocumentBlock, BoxPt]] = []
    for group in reading_order([region.box for region in regions], em):
        blocks += _column_blocks([regions[index] for index in group], vocabulary)
    return blocks


def _block(kind: BlockType, text: str) -> DocumentBlock:
    return DocumentBlock(type=kind, text=text, places=(), source="text layer")


def _figures(content: PdfContent) -> tuple[list[_Region], list[Word]]:
    """Return the figures with the words that stand in them, and the other words."""
    regions, words = [], list(content.words)
    area = content.size_pt[0] * content.size_pt[1]
    for picture in content.pictures:
        if _area(picture.box) > BACKGROUND * area and words:
            continue
        inside = [word for word in words if _holds(picture.box, word.box)]
        if sum(_area(word.box) for word in inside) > MAX_TEXT_IN_FIGURE * _area(picture.box):
            continue
        words = [word for word in words if word not in inside] if inside else words
        text = " ".join(join_lines([line]) for line in to_lines(inside))
        regions.append(_Region(box=picture.box, block=_block("figure", text)))
    return regions, words


def _column_blocks(regions: Sequence[_Region], vocabulary: Set[str]) -> list[tuple[DocumentBlock, BoxPt]]:
    """Return the blocks of one column from top to bottom."""
    lines = to_lines([region.word for region in regions if region.word is not None])
    others = sorted(
        ((region.block, region.box) for region in regions if region.block is not None), key=lambda other: other[1][1]
    )
    blocks: list[tuple[DocumentBlock, BoxPt]] = []
    run: list[Line] = []
    for line in lines:
        while others and (others[0][1][1] + others[0][1][3]) / 2 < (line.box[1] + line.box[3]) / 2:
            blocks += [*_run_blocks(run, vocabulary), others[0]]
            run, others = [], others[1:]
        run.append(line)
    return [*blocks, *_run_blocks(run, vocabulary), *others]


def _run_blocks(lines: Sequence[Line], vocabulary: Set[str]) -> list[tuple[DocumentBlock, BoxPt]]:
    """Return the blocks of lines that follow each other, among them tables of aligned text."""
    blocks: list[tuple[DocumentBlock, BoxPt]] = []
    done = 0
    for start, end, table in find_aligned(lines):
        blocks += _text_blocks(lines[done:start], vocabulary)
        boxes = [line.box for line in lines[start:end]]
        box = min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)
        blocks.append((_block("table", table.to_html()), box))
        done = end
    return blocks + _text_blocks(lines[done:], vocabulary)


def _text_blocks(lines: Sequence[Line], vocabulary: Set[str]) -> list[tuple[DocumentBlock, BoxPt]]:
    """Return the blocks of running text. The items of a list that follow each other have levels by their indents."""
    found = to_blocks(lines, vocabulary)
    blocks: list[tuple[DocumentBlock, BoxPt]] = []
    for is_list, group in itertools.groupby(found, key=lambda block: block.type == "list_item"):
        run = list(group)
        levels = _levels([block.indent_pt / block.size_pt for block in run]) if is_list else [None] * len(run)
        blocks += [(_text_block(block, level), block.box) for block, level in zip(run, levels, strict=True)]
    return blocks


def _levels(indents: Sequence[float]) -> list[int | None]:
    """Return the level of each item of a list by its indent, in ems."""
    levels: list[int | None] = []
    outer: list[float] = []
    for indent in indents:
        while outer and indent < outer[-1] - 0.5:
            outer.pop()
        if not outer or indent > outer[-1] + 0.5:
            outer.append(indent)
        levels.append(len(outer))
    return levels


def _text_block(block: TextBlock, level: int | None) -> DocumentBlock:
    return DocumentBlock(type=block.type, text=block.text, places=(), source="text layer", level=level,
                         marker=block.marker, font_pt=round(block.size_pt, 1), is_bold=block.is_bold)  # fmt: skip


def _area(box: BoxPt) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _holds(outer: BoxPt, inner: BoxPt) -> bool:
    """Tell whether the middle of a box lies in another."""
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]


def _covered(box: BoxPt, by: BoxPt) -> float:
    """Return the part of a box's area that another covers."""
    common = _area((max(box[0], by[0]), max(box[1], by[1]), min(box[2], by[2]), min(box[3], by[3])))
    return common / max(1e-9, _area(box))
