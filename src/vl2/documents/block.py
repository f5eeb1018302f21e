"""The blocks of a document: what the text layer, a model, an office file and a web page are all read into.

Boxes are (x0, y0, x1, y1) in pixels of the page as it is rendered, origin at the upper left. Pages are counted from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from vl2.process.grounding import BoxPx
from vl2.process.tiling import Size

BlockType = Literal[
    "heading", "paragraph", "list_item", "table", "figure", "caption", "formula", "code", "footnote",
    "page_header", "page_footer", "page_number",
]  # fmt: skip
BlockSource = Literal["text layer", "model", "office file", "web page"]

BLOCK_TYPES: tuple[BlockType, ...] = get_args(BlockType)
FURNITURE = frozenset({"page_header", "page_footer", "page_number"})  # what repeats on the pages around the text


@dataclass(frozen=True, kw_only=True)
class BlockPlace:
    """Where a block, or a part of it, stands. The box is None where the source does not say."""

    page: int  # from 1
    box_px: BoxPx | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"page": self.page, "box_px": None if self.box_px is None else [round(v, 1) for v in self.box_px]}


@dataclass(frozen=True, kw_only=True)
class DocumentBlock:
    """One block. A block that goes on over a column or a page has several places, in reading order."""

    type: BlockType
    text: str  # plain in a text layer, otherwise inline Markdown; a table is HTML, a formula LaTeX without delimiters
    places: tuple[BlockPlace, ...]
    source: BlockSource
    level: int | None = None  # of a heading, 1 is the highest; of a list item, 1 is the outermost
    marker: str = ""  # of a list item, such as "1.", "" for a bullet; of code, its language
    confidence: float | None = None  # mean probability of the block's tokens; None if no model read it
    label: str = ""  # the model's own word for the type
    font_pt: float | None = None  # in a text layer: the size of most characters, in points
    is_bold: bool = False  # in a text layer: whether most characters are bold
    figures: tuple[str, ...] = ()  # files that were cut out

    @property
    def is_furniture(self) -> bool:
        """Whether this is a header, a footer or a page number."""
        return self.type in FURNITURE

    @property
    def is_plain(self) -> bool:
        """Whether the text has no Markdown in it."""
        return self.source == "text layer"

    @property
    def page(self) -> int:
        """The page on which the block begins."""
        return self.places[0].page

    def to_dict(self) -> dict[str, Any]:
        """Return the block as JSON values. Fields that do not apply are left out."""
        shown: dict[str, Any] = {
            "type": self.type,
            "text": self.text,
            "places": [place.to_dict() for place in self.places],
            "source": self.source,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
        }
        for name in ("level", "marker", "label", "font_pt", "is_bold", "figures"):
            value = getattr(self, name)
            if value:
                shown[name] = list(value) if isinstance(value, tuple) else value
        return shown

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DocumentBlock:
        """Return the block that `to_dict` wrote."""
        places = tuple(
            BlockPlace(page=place["page"], box_px=None if place["box_px"] is None else tuple(place["box_px"]))
            for place in fields["places"]
        )
        return cls(**{**fields, "places": places, "figures": tuple(fields.get("figures", ()))})


@dataclass(frozen=True, kw_only=True)
class DocumentPage:
    """The blocks of one page in reading order, before pages are compared and joined."""

    number: int  # from 1
    blocks: tuple[DocumentBlock, ...]
    source: BlockSource
    size_px: Size | None = None  # (width, height) of the rendered page; None for a source without pages
    finish_reason: str | None = None  # of the model's answer

    def to_dict(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "page": self.number,
            "source": self.source,
            "size_px": self.size_px and list(self.size_px),
            "blocks": [block.to_dict() for block in self.blocks],
        }
        return shown if self.finish_reason is None else {**shown, "finish_reason": self.finish_reason}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DocumentPage:
        """Return the page that `to_dict` wrote."""
        size = fields["size_px"]
        return cls(
            number=fields["page"],
            source=fields["source"],
            size_px=None if size is None else (size[0], size[1]),
            blocks=tuple(map(DocumentBlock.from_dict, fields["blocks"])),
            finish_reason=fields.get("finish_reason"),
        )


@dataclass(frozen=True, kw_only=True)
class ReadDocument:
    """A document that was read: its blocks in reading order, joined over pages, with the furniture of pages marked."""

    name: str
    pages: tuple[DocumentPage, ...]  # as they were read
    blocks: tuple[DocumentBlock, ...]
    errors: tuple[tuple[int, str], ...] = ()  # pages that could not be read, and why

    @property
    def body(self) -> tuple[DocumentBlock, ...]:
        """The blocks without headers, footers and page numbers."""
        return tuple(block for block in self.blocks if not block.is_furniture)

    def to_dict(self) -> dict[str, Any]:
        """Return the document as JSON values."""
        return {
            "name": self.name,
            "pages": [
                {
                    "page": page.number,
                    "source": page.source,
                    "size_px": None if page.size_px is None else [*page.size_px],
                }
                for page in self.pages
            ],
            "blocks": [block.to_dict() for block in self.blocks],
            "errors": [{"page": number, "error": error} for number, error in self.errors],
        }


def on_page(block: DocumentBlock, page: int) -> DocumentBlock:
    """Return the block with all its places on this page."""
    return replace(block, places=tuple(replace(place, page=page) for place in block.places))
