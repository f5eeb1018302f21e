"""Parse the answers of the DeepSeek-OCR family into blocks with types and boxes, and write blocks as Markdown.

DeepSeek-OCR writes `<|ref|>type<|/ref|><|det|>[[x0, y0, x1, y1], ...]<|/det|>` before the text of each block.
Unlimited-OCR writes `<|det|>type [x0, y0, x1, y1]<|/det|>`, and `<PAGE>` before each of several pages. If the prompt
asks for the words in a picture or for the place of something, the type is what was found and no text follows.

Source: prompts and `run_dpsk_ocr_image.py` of the released repository; transformers' `UnlimitedOcrProcessor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vl2.process.grounding import SCALE, Box999, BoxPx, box_to_pixels
from vl2.process.page_tables import TableFormat, tables_to_markdown
from vl2.process.tiling import Size

PICTURES = frozenset({"image", "figure", "picture"})  # types of blocks that are pictures and have no text
MAX_LABEL = 1000  # characters; in a longer text the end tag is missing
PAGE = "<PAGE>"

_COORDINATE = r"\s{0,9}(\d{1,4})\s{0,9}"
_BOX = re.compile(rf"\[{_COORDINATE},{_COORDINATE},{_COORDINATE},{_COORDINATE}\]", re.ASCII)
_NUMBERS = r"[\[\]\d\s,]{0,9999}"
# Repeats are bounded, so that matching takes linear time on any text.
_OPENING = re.compile(
    rf"<\|ref\|>(?P<ref>[^<]{{0,{MAX_LABEL}}})<\|/ref\|>\s{{0,9}}<\|det\|>(?P<boxes>{_NUMBERS})<\|/det\|>"
    rf"|<\|det\|>(?P<type>[^<\[]{{0,{MAX_LABEL}}})(?P<box>\[{_NUMBERS})<\|/det\|>"
    rf"|{PAGE}"
)
_TAG = re.compile(r"<\|/?(?:ref|det|grounding)\|>")


@dataclass(frozen=True, kw_only=True)
class PageBlock:
    """One block of a page, with its boxes in 999ths of the page and in pixels. A block may have several boxes."""

    type: str  # "title", "text", "table", "image", ... as the model writes it; "" before the first tag
    text: str  # Markdown, or HTML for a table; "" for a picture
    boxes_999: tuple[Box999, ...]
    boxes_px: tuple[BoxPx, ...]
    page: int  # from 0
    span: tuple[int, int] = field(default=(0, 0), compare=False)  # where the text stands in the answer; else its tags

    @property
    def is_picture(self) -> bool:
        return self.type.lower() in PICTURES

    def to_dict(self) -> dict[str, object]:
        return {
            "type": self.type,
            "text": self.text,
            "boxes_px": [[round(v, 1) for v in box] for box in self.boxes_px],
            "boxes_999": [list(box) for box in self.boxes_999],
            "page": self.page,
        }


def parse_blocks(text: str, page_sizes: Sequence[Size] = ()) -> list[PageBlock]:
    """Parse the blocks of an answer. This function never raises: whatever is malformed is read as text.

    If the answer is cut off, the last block has the text up to the cut. `page_sizes` holds the (width, height) of the
    pages' pictures. Further pages use the last size. Without sizes the blocks have no boxes in pixels.
    """
    blocks, page, has_pages = [], 0, False
    for opening, content, start in _parts(text):
        if opening is not None and opening.group() == PAGE:
            page, has_pages = page + has_pages, True
        label, boxes = _read_opening(opening)
        tags = (start, start) if opening is None else opening.span()
        begin = start + len(content) - len(content.lstrip())
        span = (begin, start + len(content.rstrip())) if content.strip() else tags
        content = _TAG.sub("", content).strip()
        if not (content or label or boxes):
            continue
        size = page_sizes[min(page, len(page_sizes) - 1)] if page_sizes else None
        pixels = () if size is None else tuple(box_to_pixels(box, size) for box in boxes)
        blocks.append(PageBlock(type=label, text=content, boxes_999=boxes, boxes_px=pixels, page=page, span=span))
    return blocks


def to_markdown(
    blocks: Sequence[PageBlock], *, tables: TableFormat = "html", figures: Mapping[int, Sequence[str]] | None = None
) -> str:
    """Return the text of the blocks, with an empty line between blocks.

    `tables` says how tables are written; those that Markdown cannot express stay HTML. `figures` maps the index of a
    block that is a picture to the addresses of its files, which are linked. Without them pictures are left out. For
    another block without text its type is returned, because the type is then the answer to the prompt.
    """
    texts = []
    for index, block in enumerate(blocks):
        texts += [f"![{block.type}]({address})" for address in (figures or {}).get(index, ())]
        text = block.text or ("" if block.is_picture else block.type)
        texts.append(tables_to_markdown(text) if tables == "markdown" else text)
    return "\n\n".join(text for text in texts if text)


def _parts(text: str) -> Iterator[tuple[re.Match[str] | None, str, int]]:
    """Yield each block's opening tag, the text after it, and where that begins. Text before all tags has None."""
    start, previous = 0, None
    for opening in _OPENING.finditer(text):
        yield previous, text[start : opening.start()], start
        start, previous = opening.end(), opening
    yield previous, text[start:], start


def _read_opening(opening: re.Match[str] | None) -> tuple[str, tuple[Box999, ...]]:
    if opening is None or opening.group() == PAGE:
        return "", ()
    label = opening["ref"] if opening["ref"] is not None else opening["type"]
    boxes = opening["boxes"] if opening["ref"] is not None else opening["box"]
    found = [tuple(int(value) for value in match.groups()) for match in _BOX.finditer(boxes)]
    return label.strip(), tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in found if max(x0, y0, x1, y1) <= SCALE)
