"""Write a document as docling's JSON, a DoclingDocument, through docling-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vl2.documents.block import DocumentBlock, ReadDocument
from vl2.documents.table import Table, read_table
from vl2.errors import UserError
from vl2.optional_imports import install_extra

if TYPE_CHECKING:
    from docling_core.types.doc import DoclingDocument

_TEXT_LABELS = {
    "paragraph": "text", "caption": "caption", "formula": "formula", "footnote": "footnote",
    "page_header": "page_header", "page_footer": "page_footer", "page_number": "page_footer",
}  # fmt: skip


def require_docling() -> None:
    """Raise UserError, with the install command, if docling-core is missing."""
    try:
        import docling_core.types.doc  # noqa: F401
    except ImportError:
        raise UserError(f"docling's format needs docling-core: {install_extra('docling')}") from None


def to_docling(document: ReadDocument) -> DoclingDocument:
    """Return the document in docling's form. Headers, footers and page numbers are in its layer of furniture.

    Boxes are in pixels, as the pages' sizes, with the origin at the upper left. Raise UserError if docling-core is
    missing.
    """
    require_docling()
    from docling_core.types.doc import DoclingDocument, Size

    made = DoclingDocument(name=document.name)
    for page in document.pages:
        if page.size_px is not None:
            made.add_page(page_no=page.number, size=Size(width=page.size_px[0], height=page.size_px[1]))
    group: Any = None
    for block in document.blocks:
        if block.type != "list_item":
            group = None
        elif group is None:
            group = made.add_list_group(name="list")
        item = _add(made, block, group)
        item.prov = [proof for index in range(len(block.places)) if (proof := _provenance(block, index)) is not None]
    return made


def _add(made: DoclingDocument, block: DocumentBlock, group: Any) -> Any:
    from docling_core.types.doc import ContentLayer, DocItemLabel

    layer = ContentLayer.FURNITURE if block.is_furniture else ContentLayer.BODY
    if block.type == "heading":
        return made.add_heading(text=block.text, level=block.level or 1, content_layer=layer)
    if block.type == "list_item":
        is_numbered = bool(block.marker)
        return made.add_list_item(text=block.text, enumerated=is_numbered, marker=block.marker or "-", parent=group)
    if block.type == "code":
        return made.add_code(text=block.text)
    table = read_table(block.text) if block.type == "table" else None
    if table is not None:
        return made.add_table(data=_table_data(table))
    if block.type == "figure":
        caption = made.add_text(label=DocItemLabel.CAPTION, text=block.text) if block.text else None
        return made.add_picture(caption=caption)
    return made.add_text(label=DocItemLabel(_TEXT_LABELS.get(block.type, "text")), text=block.text, content_layer=layer)


def _provenance(block: DocumentBlock, index: int) -> Any:
    """Return where a part of a block stands; None without a box. All text is said to be in each part."""
    from docling_core.types.doc import BoundingBox, CoordOrigin, ProvenanceItem

    place = block.places[index]
    if place.box_px is None:
        return None
    left, top, right, bottom = place.box_px
    box = BoundingBox(l=left, t=top, r=right, b=bottom, coord_origin=CoordOrigin.TOPLEFT)
    return ProvenanceItem(page_no=place.page, bbox=box, charspan=(0, len(block.text)))


def _table_data(table: Table) -> Any:
    from docling_core.types.doc import TableCell, TableData

    num_rows, num_columns = len(table.rows), table.num_columns
    cells = [
        TableCell(
            text=cell.text,
            row_span=min(cell.num_rows, num_rows - row),
            col_span=min(cell.num_columns, num_columns - column),
            start_row_offset_idx=row,
            end_row_offset_idx=min(num_rows, row + cell.num_rows),
            start_col_offset_idx=column,
            end_col_offset_idx=min(num_columns, column + cell.num_columns),
            column_header=cell.is_header,
        )
        for row, placed in enumerate(table.placed())
        for column, cell in placed
    ]
    return TableData(num_rows=num_rows, num_cols=num_columns, table_cells=cells)
