"""Write a document as Markdown, HTML or JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence

from vl2.documents.block import DocumentBlock, ReadDocument
from vl2.documents.table import read_table
from vl2.process.page_tables import TableFormat, tables_to_markdown

# At the start of a paragraph these would begin a heading, a list, a quotation or a rule.
_BLOCK_MARK = re.compile(
    r"^(?:>|#{1,6}(?=\s|$)|[-+](?=\s|$)|[-=_](?=[\s\-=_]*$)|~~~|(?P<digits>\d{1,9})(?=[.)](?:\s|$)))"
)
# Within a line these begin code, emphasis, a link, a tag, an address or an entity.
_INLINE_MARK = re.compile(
    r"[\\`*]|~~|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w{1,31};)|!?\[(?=[^\]]*\][(\[:])|\](?=[(\[:])"
)


def to_markdown(blocks: Iterable[DocumentBlock], *, tables: TableFormat = "html") -> str:
    """Return blocks as Markdown. `tables` says how tables are written; those that Markdown cannot express stay HTML.

    A figure is linked if it was cut out, with the text in it as its description; otherwise that text is a paragraph.
    """
    pieces: list[str] = []
    is_list = False
    for block in blocks:
        text = _markdown_of(block, tables)
        if not text:
            continue
        goes_on = is_list and block.type == "list_item"
        is_list = block.type == "list_item"
        pieces += ["\n" if goes_on else "\n\n", text]
    return "".join(pieces[1:])


def _markdown_of(block: DocumentBlock, tables: TableFormat) -> str:
    text = block.text.strip("\n")
    if block.type == "table":
        return tables_to_markdown(text) if tables == "markdown" else text
    if block.type == "code":
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
        return f"{fence}{block.marker}\n{text}\n{fence}"
    if block.type == "formula":
        return f"$$\n{text}\n$$" if text else ""
    if block.is_plain:
        text = escape_markdown(text)
    if block.type == "figure":
        if not block.figures:
            return text
        described = " ".join(text.split()).replace("[", "(").replace("]", ")") or "figure"
        return "\n\n".join(f"![{described}]({address})" for address in block.figures)
    if not text:
        return ""
    if block.type == "heading":
        return f"{'#' * (block.level or 1)} {' '.join(text.split())}"
    if block.type == "list_item":
        indent = "  " * ((block.level or 1) - 1)
        marker = (
            block.marker
            if re.fullmatch(r"\d{1,9}[.)]", block.marker)
            else f"- {escape_markdown(block.marker)}".rstrip()
        )
        return f"{indent}{marker} " + text.replace("\n", f"\n{indent}  ")
    return text


def escape_markdown(text: str) -> str:
    """Return plain text as Markdown that shows it."""
    shown = _INLINE_MARK.sub(lambda mark: "".join(f"\\{sign}" for sign in mark.group()), text)
    mark = _BLOCK_MARK.match(shown)
    if mark is None:
        return shown
    end = 0 if mark["digits"] is None else mark.end("digits")
    return f"{shown[:end]}\\{shown[end:]}"


def to_html(document: ReadDocument, blocks: Sequence[DocumentBlock]) -> str:
    """Return a whole HTML page. Text that a model wrote as Markdown is rendered, with any HTML in it shown as text."""
    parts: list[str] = []
    is_list = False
    for block in blocks:
        if is_list and block.type != "list_item":
            parts.append("</ul>")
        if block.type == "list_item" and not is_list:
            parts.append("<ul>")
        is_list = block.type == "list_item"
        parts.append(_html_of(block))
    if is_list:
        parts.append("</ul>")
    title = html.escape(document.name)
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html_of(block: DocumentBlock) -> str:
    attributes = f' data-page="{block.page}"'
    if block.places[0].box_px is not None:
        attributes += f' data-box="{" ".join(f"{v:.1f}" for v in block.places[0].box_px)}"'
    if block.type == "table":
        table = read_table(block.text)  # only cells and inline tags come through
        return (
            f"<p{attributes}>{html.escape(block.text)}</p>"
            if table is None
            else table.to_html().replace("<table>", f"<table{attributes}>", 1)
        )
    if block.type == "figure":
        shown = html.escape(block.text)
        pictures = "".join(f'<img src="{html.escape(address)}" alt="{shown}">' for address in block.figures)
        inner = pictures or (f"<p>{shown}</p>" if shown else "")
        return f"<figure{attributes}>{inner}</figure>"
    if block.type in ("code", "formula"):
        return f"<pre{attributes}>{html.escape(block.text)}</pre>"
    inner = html.escape(block.text, quote=False) if block.is_plain else _rendered(block.text)
    if block.type == "heading":
        level = block.level or 1
        return f"<h{level}{attributes}>{inner}</h{level}>"
    if block.type == "list_item":
        return f"<li{attributes}>{html.escape(block.marker)}{' ' * bool(block.marker)}{inner}</li>"
    name = {"page_header": "header", "page_footer": "footer", "page_number": "footer", "caption": "figcaption"}.get(
        block.type, "p"
    )
    return f"<{name}{attributes}>{inner}</{name}>"


_TAGS = {"page_header": "header", "page_footer": "footer", "page_number": "footer", "caption": "figcaption"}


def _rendered(text: str) -> str:
    """Return inline Markdown as HTML."""
    from markdown_it import MarkdownIt

    rendered: str = MarkdownIt("commonmark", {"html": False}).renderInline(text)
    return rendered


def to_json(document: ReadDocument) -> str:
    """Return the document as JSON, with its furniture."""
    return json.dumps(document.to_dict(), ensure_ascii=False, indent=2) + "\n"
