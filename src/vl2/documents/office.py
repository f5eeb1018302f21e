"""The blocks of office files: DOCX through mammoth's HTML, PPTX slide by slide with the boxes of its shapes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vl2.documents.block import BlockPlace, DocumentBlock, DocumentPage
from vl2.documents.html_blocks import html_blocks
from vl2.documents.table import Cell, Table, escape_cell
from vl2.documents.write import escape_markdown
from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.process.tiling import Size

MAX_UNPACKED_BYTES = 500_000_000
MAX_PARTS = 20_000  # files in the archive
MAX_FIGURES = 1_000
MAX_SLIDES = 2_000
MAX_GROUPS = 20  # groups of shapes inside each other
EMU_PER_INCH = 914_400
_FIGURE = "vl2-figure-"
_BULLETED = ("BODY", "OBJECT", "VERTICAL_BODY", "VERTICAL_OBJECT")

FigureBytes = Mapping[tuple[int, int], bytes]  # by the index of the page and of the block on it


@dataclass(frozen=True, kw_only=True)
class OfficeContent:
    """The pages of an office file, and the pictures of its figures."""

    pages: tuple[DocumentPage, ...]
    figures: FigureBytes = field(default_factory=dict)


def read_docx(path: Path) -> OfficeContent:
    """Return the content of a DOCX file as one page. Raise UserError if it cannot be read or mammoth is missing."""
    _check_archive(path)
    try:
        import mammoth
    except ImportError:
        raise UserError(f"DOCX files need mammoth: {install_extra('office')}") from None
    pictures: list[bytes] = []

    def keep(image: Any) -> dict[str, str]:
        if len(pictures) >= MAX_FIGURES:
            return {"src": ""}
        with image.open() as file:
            pictures.append(file.read())
        return {"src": f"{_FIGURE}{len(pictures) - 1}"}

    try:
        with path.open("rb") as file:
            html = mammoth.convert_to_html(file, convert_image=mammoth.images.img_element(keep)).value
    except Exception as error:  # a damaged file may raise anything in the library
        raise UserError(f"cannot read {path}: {_reason(error)}") from None
    blocks: list[DocumentBlock] = []
    figures: dict[tuple[int, int], bytes] = {}
    for block in html_blocks(html, "office file"):
        for address in block.figures:
            figures[0, len(blocks)] = pictures[int(address.removeprefix(_FIGURE))]
        blocks.append(replace(block, figures=()))
    page = DocumentPage(number=1, blocks=tuple(blocks), source="office file")
    return OfficeContent(pages=(page,), figures=figures)


def read_pptx(path: Path, dpi: int) -> OfficeContent:
    """Return the slides of a PPTX file as pages. Raise UserError if it cannot be read or python-pptx is missing."""
    _check_archive(path)
    try:
        import pptx
    except ImportError:
        raise UserError(f"PPTX files need python-pptx: {install_extra('office')}") from None
    figures: dict[tuple[int, int], bytes] = {}
    pages: list[DocumentPage] = []
    try:
        slides = pptx.Presentation(str(path))
        scale = dpi / EMU_PER_INCH
        size = round((slides.slide_width or 0) * scale), round((slides.slide_height or 0) * scale)
        for index, slide in enumerate(slides.slides):
            if index >= MAX_SLIDES:
                raise UserError(f"{path} has more than {MAX_SLIDES} slides")
            blocks: list[DocumentBlock] = []
            for block, picture in _slide_blocks(slide, index + 1, scale):
                if picture is not None and len(figures) < MAX_FIGURES:
                    figures[index, len(blocks)] = picture
                blocks.append(block)
            pages.append(_slide_page(index + 1, blocks, size))
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise anything in the library
        raise UserError(f"cannot read {path}: {_reason(error)}") from None
    return OfficeContent(pages=tuple(pages), figures=figures)


def _slide_page(number: int, blocks: list[DocumentBlock], size: Size) -> DocumentPage:
    return DocumentPage(number=number, blocks=tuple(blocks), source="office file", size_px=size)


def _check_archive(path: Path) -> None:
    """Raise UserError if the file is no archive, or if it would unpack to more than is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError):
        raise UserError(f"cannot read {path}: it is not an office file, or damaged") from None
    size = sum(part.file_size for part in parts)
    if len(parts) > MAX_PARTS or size > MAX_UNPACKED_BYTES:
        raise UserError(
            f"{path} unpacks to {len(parts)} parts of {size} bytes; at most {MAX_PARTS} parts of {MAX_UNPACKED_BYTES} "
            "bytes are read"
        )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


def _slide_blocks(slide: Any, number: int, scale: float) -> Iterator[tuple[DocumentBlock, bytes | None]]:
    """Yield the blocks of a slide: the title, then the shapes from top to bottom, then the notes."""
    title = slide.shapes.title
    shapes = sorted(_shapes(slide.shapes, 0), key=lambda shape: (_emu(shape.top), _emu(shape.left)))
    if title is not None:
        shapes = [title, *(shape for shape in shapes if shape.shape_id != title.shape_id)]
    for shape in shapes:
        is_title = title is not None and shape.shape_id == title.shape_id
        x0, y0 = _emu(shape.left) * scale, _emu(shape.top) * scale
        box = (x0, y0, x0 + _emu(shape.width) * scale, y0 + _emu(shape.height) * scale)
        places = (BlockPlace(page=number, box_px=box),)
        yield from _shape_blocks(shape, places, is_title=is_title)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        for paragraph in slide.notes_slide.notes_text_frame.paragraphs:
            if paragraph.text.strip():
                text = escape_markdown(" ".join(paragraph.text.split()))
                yield _block("paragraph", text, (BlockPlace(page=number),), label="notes"), None


def _emu(value: int | None) -> int:
    return value or 0


def _shapes(shapes: Any, depth: int) -> Iterator[Any]:
    for shape in shapes:
        if hasattr(shape, "shapes") and depth < MAX_GROUPS:
            yield from _shapes(shape.shapes, depth + 1)
        else:
            yield shape


def _shape_blocks(
    shape: Any, places: tuple[BlockPlace, ...], *, is_title: bool
) -> Iterator[tuple[DocumentBlock, bytes | None]]:
    if getattr(shape, "has_table", False):
        yield _block("table", _table(shape.table).to_html(), places), None
    elif hasattr(shape, "image"):
        described = shape._element.xpath(".//p:cNvPr/@descr")  # python-pptx has no name for the description
        yield _block("figure", escape_markdown(" ".join(described[:1])), places), shape.image.blob
    elif shape.has_text_frame:
        is_list = (
            shape.is_placeholder
            and not is_title
            and _placeholder(shape) in ("BODY", "OBJECT", "VERTICAL_BODY", "VERTICAL_OBJECT")
        )
        for paragraph in shape.text_frame.paragraphs:
            text = escape_markdown(" ".join(paragraph.text.split()))
            if not text:
                continue
            if is_title:
                yield _block("heading", text, places, level=1), None
            elif is_list or paragraph.level > 0:
                yield _block("list_item", text, places, level=paragraph.level + 1), None
            else:
                yield _block("paragraph", text, places), None


def _placeholder(shape: Any) -> str:
    """Return the kind of a placeholder: BODY and OBJECT hold bullets."""
    kind = shape.placeholder_format.type
    return "" if kind is None else str(kind.name)


def _block(
    kind: Any, text: str, places: tuple[BlockPlace, ...], *, level: int | None = None, label: str = ""
) -> DocumentBlock:
    return DocumentBlock(type=kind, text=text, places=places, source="office file", level=level, label=label)


def _table(table: Any) -> Table:
    rows = []
    for number, row in enumerate(table.rows):
        cells = [
            Cell(
                content=escape_cell(" ".join(cell.text.split())),
                num_columns=cell.span_width if cell.is_merge_origin else 1,
                num_rows=cell.span_height if cell.is_merge_origin else 1,
                is_header=number == 0 and bool(table.first_row),
            )
            for cell in row.cells
            if not cell.is_spanned
        ]
        rows.append(tuple(cells))
    return Table(rows=tuple(rows))
