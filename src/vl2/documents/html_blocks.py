"""The blocks of HTML: of web pages, and of what office files are converted to.

Inline markup becomes Markdown. Navigation, headers and footers are furniture of the page; scripts, forms and what is
hidden are left out. Libraries: Beautiful Soup parses, markdownify writes inline Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from vl2.documents.block import BlockPlace, BlockSource, BlockType, DocumentBlock
from vl2.documents.table import read_table
from vl2.errors import UserError
from vl2.optional_imports import install_extra

if TYPE_CHECKING:
    from bs4.element import Tag

MAX_HTML_CHARS = 20_000_000
MAX_DEPTH = 200  # elements inside each other

_LEFT_OUT = frozenset({
    "script", "style", "noscript", "template", "head", "svg", "iframe", "object", "button", "input", "select",
    "textarea", "form", "dialog", "canvas",
})  # fmt: skip
_FURNITURE: dict[str, BlockType] = {
    "nav": "page_header", "header": "page_header", "footer": "page_footer",
    "navigation": "page_header", "banner": "page_header", "contentinfo": "page_footer",
}  # fmt: skip
_CONTAINERS = frozenset({
    "html", "body", "main", "article", "section", "div", "header", "footer", "nav", "aside", "ul", "ol", "dl", "figure",
    "details", "center", "blockquote", "fieldset", "address", "hgroup", "search", "summary", "picture",
})  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = _CONTAINERS | {*_HEADINGS, "p", "pre", "li", "dt", "dd", "table", "figcaption", "hr", "img"}


@dataclass(frozen=True, kw_only=True)
class _Context:
    """Where an element stands."""

    source: BlockSource
    base: str  # address of the page, onto which links are resolved
    furniture: BlockType | None = None
    list_level: int = 0
    marker: str = ""
    depth: int = 0


def html_blocks(text: str, source: BlockSource, *, base: str = "") -> list[DocumentBlock]:
    """Return the blocks of an HTML text, all on page 1 and without boxes.

    A figure has the address of its picture as file. Raise UserError if the text is too large or too deeply nested, or
    if the extra `office` is not installed.
    """
    if len(text) > MAX_HTML_CHARS:
        raise UserError(f"the page has {len(text)} characters, at most {MAX_HTML_CHARS} are read")
    try:
        from bs4 import BeautifulSoup
    except ImportError:
        raise UserError(f"web pages and office files need more packages: {install_extra('office')}") from None
    try:
        soup = BeautifulSoup(text, "html.parser")
        root = _main_part(soup)
        _prepare_links(root, base)
        return list(_walk(root, _Context(source=source, base=base)))
    except RecursionError:
        raise UserError(f"the page has more than {MAX_DEPTH} elements inside each other") from None


def page_title(text: str) -> str:
    """Return the title of an HTML text, "" if it has none."""
    found = re.search(r"<title[^<>]{0,500}>([^<]{0,500})", text, re.IGNORECASE)
    return " ".join(found[1].split()) if found else ""


def _main_part(soup: Any) -> Tag:
    """Return the element with the page's own text: the only one that says so, else the whole page."""
    for name, role in (("main", None), (None, "main"), ("article", None)):
        found = soup.find_all(name, **({"role": role} if role else {}), limit=2)
        if len(found) == 1:
            part: Tag = found[0]
            return part
    whole: Tag = soup.body or soup
    return whole


def _prepare_links(root: Tag, base: str) -> None:
    """Resolve the addresses of links, and drop the signs that link to a heading itself."""
    for link in root.find_all("a"):
        if link.get_text().strip() in ("¶", "#", "§", ""):
            if link.find("img") is None:
                link.extract()
        elif base and link.get("href"):
            link["href"] = urljoin(base, str(link["href"]))


def _furniture_of(tag: Tag) -> BlockType | None:
    """Return what an element says of itself by its name or role."""
    return _FURNITURE.get(tag.name) or _FURNITURE.get(str(tag.get("role") or ""))


def _walk(element: Tag, context: _Context) -> Iterator[DocumentBlock]:
    """Yield the blocks in an element that holds blocks. Text directly in it is a paragraph."""
    from bs4.element import Comment, NavigableString
    from bs4.element import Tag as TagType

    if context.depth > MAX_DEPTH:
        raise RecursionError
    inline: list[Any] = []
    number = 0
    for child in element.children:
        if isinstance(child, TagType):
            if _is_hidden(child):
                continue
            if child.name not in _BLOCKS and not _has_blocks(child):
                inline.append(child)
                continue
            yield from _inline_block(inline, context)
            inline = []
            number += child.name == "li"
            marker = f"{number}." if child.name == "li" and element.name == "ol" else ""
            yield from _element_blocks(child, replace(context, marker=marker, depth=context.depth + 1))
        elif isinstance(child, NavigableString) and not isinstance(child, Comment):
            inline.append(child)
    yield from _inline_block(inline, context)


def _is_hidden(tag: Tag) -> bool:
    style = str(tag.get("style") or "").replace(" ", "").lower()
    return (
        tag.name in _LEFT_OUT or tag.has_attr("hidden") or tag.get("aria-hidden") == "true" or "display:none" in style
    )


def _has_blocks(tag: Tag) -> bool:
    return tag.find(list(_BLOCKS)) is not None


def _element_blocks(tag: Tag, context: _Context) -> Iterator[DocumentBlock]:
    name = tag.name
    if name in _HEADINGS:
        yield from _made("heading", _inline(tag), context, level=_HEADINGS[name])
    elif name == "pre":
        yield from _made("code", tag.get_text().strip("\n"), context)
    elif name == "table":
        yield from _table_blocks(tag, context)
    elif name == "img":
        yield from _figure(tag, context)
    elif name in ("li", "dd"):
        yield from _item_blocks(tag, context)
    elif name in ("p", "dt", "figcaption"):
        for picture in tag.find_all("img"):
            yield from _figure(picture, context)
            picture.extract()
        yield from _made("caption" if name == "figcaption" else "paragraph", _inline(tag), context)
    elif name in ("ul", "ol"):
        yield from _walk(tag, replace(context, list_level=context.list_level + 1))
    else:
        yield from _walk(tag, replace(context, furniture=context.furniture or _furniture_of(tag)))


def _item_blocks(tag: Tag, context: _Context) -> Iterator[DocumentBlock]:
    """Yield an item's own text as a list item, then the blocks in it."""
    is_first = True
    for block in _walk(tag, replace(context, marker="")):
        if is_first and block.type == "paragraph":
            yield replace(block, type="list_item", level=max(1, context.list_level), marker=context.marker)
        else:
            yield block
        is_first = False


def _table_blocks(tag: Tag, context: _Context) -> Iterator[DocumentBlock]:
    caption = tag.find("caption")
    if caption is not None:
        yield from _made("caption", _inline(caption), context)
        caption.extract()
    rows = tag.find_all("tr")
    if tag.find("table") is not None or all(len(row.find_all(["td", "th"], recursive=False)) < 2 for row in rows):
        for cell in tag.find_all(["td", "th"]):  # a table that only sets out the page
            if cell.find_parent("table") is tag:
                yield from _walk(cell, context)
        return
    for picture in tag.find_all("img"):
        picture.replace_with(str(picture.get("alt") or ""))
    table = read_table(str(tag))
    if table is not None:
        yield from _made("table", table.to_html(), context)


def _figure(tag: Tag, context: _Context) -> Iterator[DocumentBlock]:
    address = str(tag.get("src") or "")
    alt = " ".join(str(tag.get("alt") or "").split())
    if address[:5].lower() == "data:":
        address = ""
    if not address and not alt:
        return
    resolved = urljoin(context.base, address) if context.base and address else address
    yield replace(_block("figure", alt, context), figures=(resolved,) if resolved else ())


def _inline_block(pieces: list[Any], context: _Context) -> Iterator[DocumentBlock]:
    if pieces:
        yield from _made("paragraph", _markdown("".join(map(_as_html, pieces))), context)


def _as_html(piece: Any) -> str:
    return str(piece) if hasattr(piece, "attrs") else str(piece).replace("&", "&amp;").replace("<", "&lt;")


def _inline(tag: Tag) -> str:
    return _markdown(tag.decode_contents())


def _markdown(html: str) -> str:
    from markdownify import markdownify

    shown: str = markdownify(html, heading_style="ATX", strip=["img", "script", "style"], escape_misc=False)
    return " ".join(shown.split())


def _made(kind: BlockType, text: str, context: _Context, *, level: int | None = None) -> Iterator[DocumentBlock]:
    if text.strip():
        yield replace(_block(kind, text, context), level=level)


def _block(kind: BlockType, text: str, context: _Context) -> DocumentBlock:
    has_furniture = context.furniture is not None and kind != "figure"
    return DocumentBlock(
        type=context.furniture if has_furniture and context.furniture else kind,
        text=text,
        places=(BlockPlace(page=1),),
        source=context.source,
    )
