"""What is read: files, folders and http(s) URLs, as items that each give one page or one whole office file."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from PIL import Image

from vl2.batch_job.file_items import KNOWN, input_files
from vl2.documents.block import DocumentPage
from vl2.documents.html_blocks import html_blocks
from vl2.documents.layer_quality import why_refused
from vl2.documents.office import read_docx, read_pptx
from vl2.documents.pdf_page import read_pdf_page
from vl2.documents.text_layer import layer_page
from vl2.errors import UserError
from vl2.process.fetch import fetch
from vl2.process.image import open_image
from vl2.process.pdf import DEFAULT_DPI, POINTS_PER_INCH, count_pages, draw_page, page_text, require_library

OFFICE = (".docx", ".pptx")
WEB = (".html", ".htm")
READABLE = (*KNOWN, *OFFICE, *WEB)
MAX_URLS = 100
MAX_URL_BYTES = 100_000_000
MAX_HTML_BYTES = 40_000_000
URL_TIMEOUT_S = 60.0

UseLayer = Literal["auto", "always", "never"]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How sources are opened. Raise UserError if a value is out of range."""

    dpi: int = DEFAULT_DPI  # how finely pages are rendered
    first: int = 1  # page of PDF files and slides
    last: int = sys.maxsize
    text_layer: UseLayer = "auto"  # "auto" uses a good one, "always" any that has text, "never" none
    allow_private_urls: bool = False

    def __post_init__(self) -> None:
        if not 18 <= self.dpi <= 600:
            raise UserError(f"dpi must be in 18..600, got {self.dpi}")
        if self.text_layer not in ("auto", "always", "never"):
            raise UserError(f"text_layer must be auto, always or never, got {self.text_layer}")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What an item gives: pages that need no model, or the picture of one page for it."""

    pages: tuple[DocumentPage, ...] = ()
    figures: Mapping[tuple[int, int], bytes] = field(default_factory=dict)  # by the index of the page and of the block
    image: Image.Image | None = None
    hint: str = ""  # a text layer that was refused, which speeds up reading where it is right


@dataclass(frozen=True, kw_only=True)
class SourceItem:
    """A page or an office file of a document."""

    id: str
    file: str  # name of the document
    number: int  # of the page, from 1
    load: Callable[[], Loaded]
    draw: Callable[[], Image.Image] | None = None  # renders the page; None if there is no picture of it
    picture: Path | None = None  # the input file, if it is a picture


class Sources:
    """The items of inputs. Downloaded files live until `close`, or the end of the `with` block."""

    def __init__(
        self, inputs: Sequence[str | Path], options: SourceOptions | None = None, *, leave_out: Sequence[Path] = ()
    ) -> None:
        """Find the files and fetch the URLs. Raise UserError for what is not there, not allowed or not supported."""
        self.options = options or SourceOptions()
        self._has_pdf = False
        self._folder = tempfile.TemporaryDirectory(prefix="vl2-read-")
        try:
            self.items = list(self._find([str(name) for name in inputs], leave_out))
        except BaseException:
            self.close()
            raise
        if not self.items:
            self.close()
            raise UserError(self._why_empty(", ".join(map(str, inputs))))

    def _why_empty(self, inputs: str) -> str:
        first, last = self.options.first, self.options.last
        if self._has_pdf:
            pages = f"{first}-{last if last < sys.maxsize else ''}"
            return f"there is no page {first if first == last else pages} in {inputs}"
        return f"nothing to read in {inputs}: supported files are {', '.join(READABLE)}"

    def close(self) -> None:
        """Remove what was downloaded."""
        self._folder.cleanup()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, inputs: Sequence[str], leave_out: Sequence[Path]) -> Iterator[SourceItem]:
        if not inputs:
            raise UserError("say what to read: images, PDF, office or HTML files, folders of them, or URLs")
        urls = [name for name in inputs if _is_url(name)]
        if len(urls) > MAX_URLS:
            raise UserError(f"at most {MAX_URLS} URLs are read at once, got {len(urls)}")
        for name in inputs:
            if _is_url(name):
                yield from self._items(name, self._download(name, urls.index(name)), base=name)
            else:
                for found, path in input_files([name], leave_out, known=READABLE):
                    prefix = f"{Path(name).as_posix()}/" if len(inputs) > 1 and Path(name).is_dir() else ""
                    yield from self._items(prefix + found, path)

    def _download(self, url: str, number: int) -> Path:
        """Fetch a URL into a file whose suffix says what it is."""
        data = fetch(
            url, max_bytes=MAX_URL_BYTES, timeout_s=URL_TIMEOUT_S, allow_private=self.options.allow_private_urls
        )
        stem = Path(unquote(urlsplit(url).path)).stem[:60] or "page"
        folder = Path(self._folder.name) / str(number)
        folder.mkdir(exist_ok=True)
        path = folder / f"{stem.replace('/', '_')}.part"
        path.write_bytes(data)
        return path.rename(path.with_suffix(_suffix_of(data, path)))

    def _items(self, name: str, path: Path, *, base: str = "") -> Iterator[SourceItem]:
        suffix, options = path.suffix.lower(), self.options
        if suffix == ".pdf":
            require_library()
            yield from self._pdf_items(name, path)
        elif suffix in OFFICE:
            yield SourceItem(id=name, file=name, number=1, load=partial(_load_office, path, options))
        elif suffix in WEB:
            yield SourceItem(id=name, file=name, number=1, load=partial(_load_web, path, base))
        else:
            draw = partial(open_image, path.as_posix())
            yield SourceItem(id=name, file=name, number=1, load=partial(_load_image, path), draw=draw,
                             picture=path)  # fmt: skip

    def _pdf_items(self, name: str, path: Path) -> Iterator[SourceItem]:
        options = self.options
        self._has_pdf = True
        for number in range(options.first, min(options.last, count_pages(path)) + 1):
            yield SourceItem(
                id=f"{name}#{number}",
                file=name,
                number=number,
                load=partial(_load_pdf_page, path, number, options),
                draw=partial(draw_page, path, number, options.dpi),
            )


def _is_url(name: str) -> bool:
    return name[:8].lower().startswith(("http://", "https://"))


def _suffix_of(data: bytes, path: Path) -> str:
    """Return the suffix for what was downloaded, by its first bytes."""
    head = data[:1024]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"%PDF-" in head:
        return ".pdf"
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = set(archive.namelist()[:1000])
        except (zipfile.BadZipFile, ValueError):
            names = set()
        for suffix, part in ((".docx", "word/document.xml"), (".pptx", "ppt/presentation.xml")):
            if part in names:
                return suffix
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (b"<html" in text and text[:1] == b"<"):
        return ".html"
    return ".png"  # any picture; what is none is refused with its reason when it is opened


def _load_image(path: Path) -> Loaded:
    return Loaded(image=open_image(path.as_posix()))


def _load_pdf_page(path: Path, number: int, options: SourceOptions) -> Loaded:
    """Return the page of the text layer if that is to be used, else the page's picture."""
    if options.text_layer != "never":
        content = read_pdf_page(path, number)
        is_good = why_refused(content) is None
        if is_good or (options.text_layer == "always" and content.words):
            scale = options.dpi / POINTS_PER_INCH
            size = max(1, round(content.size_pt[0] * scale)), max(1, round(content.size_pt[1] * scale))
            return Loaded(pages=(layer_page(content, number, size),))
        if options.text_layer == "always":
            return Loaded(pages=(DocumentPage(number=number, blocks=(), source="text layer"),))
    return Loaded(image=draw_page(path, number, options.dpi), hint=page_text(path, number))


def _load_office(path: Path, options: SourceOptions) -> Loaded:
    if path.suffix.lower() == ".docx":
        content = read_docx(path)
        return Loaded(pages=content.pages, figures=content.figures)
    content = read_pptx(path, options.dpi)
    chosen = [index for index, page in enumerate(content.pages) if options.first <= page.number <= options.last]
    if not chosen:
        raise UserError(f"{path} has {len(content.pages)} slides, and none of them was chosen with --pages")
    return Loaded(
        pages=tuple(content.pages[index] for index in chosen),
        figures={
            (chosen.index(page), block): data for (page, block), data in content.figures.items() if page in chosen
        },
    )


def _load_web(path: Path, base: str) -> Loaded:
    try:
        size = path.stat().st_size
        if size > MAX_HTML_BYTES:
            raise UserError(f"{path} has {size} bytes, at most {MAX_HTML_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    blocks = html_blocks(decode_html(data), "web page", base=base)
    return Loaded(pages=(DocumentPage(number=1, blocks=tuple(blocks), source="web page"),))


def decode_html(data: bytes) -> str:
    """Return the text of an HTML file, in the encoding that it declares, else UTF-8."""
    try:
        from bs4.dammit import UnicodeDammit
    except ImportError:
        return data.decode("utf-8", "replace")
    found = UnicodeDammit(data, ["utf-8-sig", "utf-8"], is_html=True).unicode_markup
    return found if isinstance(found, str) else data.decode("utf-8", "replace")
