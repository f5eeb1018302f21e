"""The blocks of a page that a model read: typed ones of the DeepSeek-OCR family, plain text of DeepSeek-VL2."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vl2.documents.block import BlockPlace, BlockType, DocumentBlock, DocumentPage
from vl2.documents.table import plain_table
from vl2.infer.reply import Reply
from vl2.process.grounding import without_boxes
from vl2.process.page_blocks import PICTURES, PageBlock
from vl2.process.page_tables import whole_tables

# The words of the DeepSeek-OCR family for types of blocks, and those of other models that were trained alike.
TYPES: dict[str, BlockType] = {
    "title": "heading", "sub_title": "heading", "section_header": "heading", "heading": "heading",
    "text": "paragraph", "paragraph": "paragraph", "abstract": "paragraph", "reference": "paragraph",
    "list": "list_item", "list_item": "list_item",
    "table": "table",
    "image_caption": "caption", "table_caption": "caption", "figure_caption": "caption", "caption": "caption",
    "table_footnote": "footnote", "image_footnote": "footnote", "page_footnote": "footnote", "footnote": "footnote",
    "equation": "formula", "formula": "formula", "interline_equation": "formula",
    "code": "code", "algorithm": "code",
    "header": "page_header", "page_header": "page_header",
    "footer": "page_footer", "page_footer": "page_footer",
    "page_number": "page_number",
}  # fmt: skip

_HEADING = re.compile(r"(#{1,6})\s+(.*)", re.DOTALL)
_ITEM = re.compile(r"(?P<indent>[ \t]{0,12})(?:[-*+•]|(?P<marker>\d{1,3}[.)]))\s+(?P<text>.*)")
_FORMULA = re.compile(r"(?:\\\[(?P<a>.*)\\\]|\$\$(?P<b>.*)\$\$)", re.DOTALL)
_FENCE = re.compile(r"(`{3,})([^\n`]*)\n(.*?)\n?\1", re.DOTALL)
_ROW = re.compile(r"\s*\|.*\|\s*")
_DASHES = re.compile(r"\s*\|(?:\s*:?-+:?\s*\|)+\s*")


def model_page(reply: Reply, number: int) -> DocumentPage:
    """Return the page that an answer transcribes."""
    size = reply.image_sizes[-1]
    if reply.kind == "DeepSeek-VL2":
        text = without_boxes(reply.text)
        confidence = reply.confidence((0, len(reply.text)))
        blocks = [
            _block(kind, shown, number, level=level, marker=marker, confidence=confidence)
            for kind, shown, level, marker in _text_parts(text)
        ]
    else:
        blocks = [block for found in reply.blocks for block in _typed_blocks(found, reply, number)]
    return DocumentPage(
        number=number, blocks=tuple(blocks), source="model", size_px=size, finish_reason=reply.finish_reason
    )


def _block(
    kind: BlockType,
    text: str,
    page: int,
    *,
    places: tuple[BlockPlace, ...] = (),
    level: int | None = None,
    marker: str = "",
    confidence: float | None = None,
    label: str = "",
) -> DocumentBlock:
    return DocumentBlock(type=kind, text=text, places=places or (BlockPlace(page=page),), source="model", level=level,
                         marker=marker, confidence=confidence, label=label)  # fmt: skip


def _typed_blocks(found: PageBlock, reply: Reply, number: int) -> Iterator[DocumentBlock]:
    """Yield the blocks of one tagged block: a block of text may hold a list or several paragraphs."""
    places = tuple(BlockPlace(page=number, box_px=box) for box in found.boxes_px)
    confidence = reply.confidence(found.span)
    label = found.type.lower()

    def made(kind: BlockType, text: str, level: int | None = None, marker: str = "") -> DocumentBlock:
        return _block(kind, text, number, places=places, level=level, marker=marker, confidence=confidence,
                      label=found.type)  # fmt: skip

    if label in PICTURES:
        yield made("figure", found.text)
        return
    if not found.text:  # words that were found in a picture are the type themselves
        if found.type and label not in TYPES:
            yield _block("paragraph", found.type, number, places=places, confidence=confidence)
        return
    kind = TYPES.get(label, "paragraph")
    if kind not in ("paragraph", "heading", "list_item", "table"):
        yield made(kind, _inner(found.text, kind))
        return
    for part, text, level, marker in _text_parts(found.text):
        if kind == "heading" and part == "paragraph":
            yield made("heading", text, 1 if label == "title" else 2)
        else:
            yield made(part, text, level, marker)


def _inner(text: str, kind: BlockType) -> str:
    """Return a formula without its delimiters, code without its fence, and other text as it is."""
    if kind == "formula":
        found = _FORMULA.fullmatch(text.strip())
        return text.strip() if found is None else (found["a"] or found["b"] or "").strip()
    if kind == "code":
        fenced = _FENCE.fullmatch(text.strip())
        return text if fenced is None else fenced[3]
    return text


def _text_parts(text: str) -> Iterator[tuple[BlockType, str, int | None, str]]:
    """Yield (type, text, level, marker) of the blocks of plain text or Markdown."""
    done = 0
    for start, end in whole_tables(text):
        yield from _code_and_text(text[done:start])
        yield "table", text[start:end], None, ""
        done = end
    yield from _code_and_text(text[done:])


def _code_and_text(text: str) -> Iterator[tuple[BlockType, str, int | None, str]]:
    done = 0
    for fenced in _FENCE.finditer(text):
        yield from _paragraphs(text[done : fenced.start()])
        yield "code", fenced[3], None, fenced[2].strip()
        done = fenced.end()
    yield from _paragraphs(text[done:])


def _paragraphs(text: str) -> Iterator[tuple[BlockType, str, int | None, str]]:
    for piece in re.split(r"\n\s*\n", text):
        lines = piece.strip("\n").split("\n")
        formula = _FORMULA.fullmatch(piece.strip())
        if not piece.strip():
            continue
        if formula is not None:
            yield "formula", (formula["a"] or formula["b"] or "").strip(), None, ""
        elif len(lines) >= 2 and all(map(_ROW.fullmatch, lines)) and _DASHES.fullmatch(lines[1]):
            rows = [_split_row(line) for line in (lines[0], *lines[2:])]
            yield "table", plain_table(rows, has_header=True).to_html(), None, ""
        else:
            yield from _marked_lines(lines)


def _split_row(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [cell.strip().replace("\\|", "|") for cell in cells]


def _marked_lines(lines: list[str]) -> Iterator[tuple[BlockType, str, int | None, str]]:
    """Yield the blocks of lines without an empty one: headings, items, and the text between them."""
    kept: list[str] = []

    def paragraph() -> Iterator[tuple[BlockType, str, int | None, str]]:
        if any(line.strip() for line in kept):
            yield "paragraph", "\n".join(kept).strip(), None, ""
        kept.clear()

    for line in lines:
        heading, item = _HEADING.fullmatch(line.strip()), _ITEM.fullmatch(line)
        if heading is not None:
            yield from paragraph()
            yield "heading", heading[2].strip(), len(heading[1]), ""
        elif item is not None:
            yield from paragraph()
            indent = len(item["indent"].expandtabs(4))
            yield "list_item", item["text"].strip(), 1 + indent // 2, item["marker"] or ""
        else:
            kept.append(line)
    yield from paragraph()
