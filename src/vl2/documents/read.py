"""Read documents into blocks: text layers as they are, and the pictures of other pages by a model.

Pages are read in small windows, so that a model answers several together. A page that cannot be read is an error of
its document, and the others are still read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vl2.batch_job.exports import file_stems, write_picture
from vl2.batch_job.file_items import page_range
from vl2.batch_job.markdown_export import link_from
from vl2.documents.block import DocumentBlock, DocumentPage, ReadDocument
from vl2.documents.join import join_pages
from vl2.documents.model_page import model_page
from vl2.documents.sources import Loaded, SourceItem, SourceOptions, Sources, UseLayer
from vl2.errors import UserError
from vl2.files import local_path
from vl2.infer.prompts import read_prompt
from vl2.infer.reply import Reply
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import Request
from vl2.model_kind import ModelKind
from vl2.process.conversation import one_question
from vl2.process.image import open_image
from vl2.process.page_figures import whole_pixels

TOGETHER = 4  # pages that a model reads at once
READ_OPTIONS = GenerateOptions(max_new_tokens=2048, max_repeats=8)


class HasKind(Protocol):
    """What reading needs of a `Processor`."""

    @property
    def kind(self) -> ModelKind: ...


class PageModel(Protocol):
    """What reading needs of a `VLM`."""

    @property
    def processor(self) -> HasKind: ...

    def batch(self, requests: Sequence[Any], /) -> list[Reply]: ...


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """What an item became: its pages, or why it could not be read."""

    item: SourceItem
    pages: tuple[DocumentPage, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the line of the log."""
        line: dict[str, Any] = {"id": self.item.id, "file": self.item.file}
        if self.error is not None:
            return {**line, "page": self.item.number, "error": self.error}
        return {**line, "pages": [page.to_dict() for page in self.pages]}

    @classmethod
    def from_dict(cls, item: SourceItem, line: Mapping[str, Any]) -> ItemResult:
        """Return the result that `to_dict` wrote."""
        pages = tuple(map(DocumentPage.from_dict, line.get("pages", ())))
        return cls(item=item, pages=pages, error=line.get("error"))


@dataclass(kw_only=True)
class PageReader:
    """Read items, with a model that is loaded when a page needs one."""

    load_model: Callable[[], PageModel] | None = None
    options: GenerateOptions = READ_OPTIONS
    write_figure: Callable[[SourceItem, int, Image.Image], str] | None = None  # returns the address of the file
    on_reply: Callable[[SourceItem, Request, Reply], None] | None = None  # called with each answer of the model
    _model: PageModel | None = field(default=None, init=False)
    _num_figures: dict[str, int] = field(default_factory=dict, init=False)

    def read(self, items: Iterable[SourceItem]) -> Iterator[ItemResult]:
        """Yield the results of the items, in their order."""
        window: list[tuple[SourceItem, Loaded | str]] = []
        num_pictures = 0
        for item in items:
            try:
                loaded: Loaded | str = item.load()
            except UserError as error:
                loaded = " ".join(str(error).split())
            window.append((item, loaded))
            num_pictures += isinstance(loaded, Loaded) and loaded.image is not None
            if num_pictures in (0, TOGETHER):
                yield from self._finish(window)
                window, num_pictures = [], 0
        yield from self._finish(window)

    def _finish(self, window: Sequence[tuple[SourceItem, Loaded | str]]) -> Iterator[ItemResult]:
        asked = [(item, each) for item, each in window if isinstance(each, Loaded) and each.image is not None]
        answers = dict(zip((item.id for item, _ in asked), self._ask(asked), strict=True))
        for item, loaded in window:
            if isinstance(loaded, str):
                yield ItemResult(item=item, error=loaded)
            elif loaded.image is None:
                yield self._with_figures(item, loaded.pages, loaded)
            else:
                reply = answers[item.id]
                if isinstance(reply, str):
                    yield ItemResult(item=item, error=reply)
                else:
                    yield self._with_figures(item, (model_page(reply, item.number),), loaded)

    def _ask(self, asked: Sequence[tuple[SourceItem, Loaded]]) -> list[Reply | str]:
        """Return the answers, or errors. Pages that cannot be answered together are asked for one by one."""
        if not asked:
            return []
        if self.load_model is None:
            return ["its picture must be read, and no model was given" for _ in asked]
        if self._model is None:
            self._model = self.load_model()
        prompt = read_prompt(self._model.processor.kind)
        requests = [
            Request(
                messages=one_question(prompt, [loaded.image]),
                options=self._with_hint(loaded.hint),
                with_probabilities=True,
            )
            for _, loaded in asked
            if loaded.image is not None
        ]
        replies = self._answers(self._model, requests)
        if self.on_reply is not None:
            for (item, _), request, reply in zip(asked, requests, replies, strict=True):
                if not isinstance(reply, str):
                    self.on_reply(item, request, reply)
        return replies

    def _answers(self, model: PageModel, requests: Sequence[Request]) -> list[Reply | str]:
        try:
            return list(model.batch(requests))
        except UserError as error:
            if len(requests) == 1:
                return [" ".join(str(error).split())]
        replies: list[Reply | str] = []
        for request in requests:
            try:
                replies += model.batch([request])
            except UserError as error:
                replies.append(" ".join(str(error).split()))
        return replies

    def _with_hint(self, hint: str) -> GenerateOptions:
        can_guess = self.options.speculation and not self.options.prediction and hint
        return replace(self.options, prediction=hint) if can_guess else self.options

    def _with_figures(self, item: SourceItem, pages: Sequence[DocumentPage], loaded: Loaded) -> ItemResult:
        """Cut out the figures of pages, and write them."""
        if self.write_figure is None:
            return ItemResult(item=item, pages=tuple(pages))
        image = loaded.image
        made = []
        try:
            for page_index, page in enumerate(pages):
                blocks: list[DocumentBlock] = []
                for index, block in enumerate(page.blocks):
                    pictures: list[Image.Image] = []
                    data = loaded.figures.get((page_index, index))
                    if data is not None:
                        pictures = _opened(data)
                    elif block.type == "figure" and item.draw is not None:
                        image = image or item.draw()
                        boxes = [whole_pixels(place.box_px, image.size) for place in block.places if place.box_px]
                        pictures = [image.crop(box) for box in boxes if box is not None]
                    files = tuple(self.write_figure(item, self._next_number(item), each) for each in pictures)
                    blocks.append(replace(block, figures=files) if files else block)
                made.append(replace(page, blocks=tuple(blocks)))
        except UserError as error:
            return ItemResult(item=item, error=" ".join(str(error).split()))
        return ItemResult(item=item, pages=tuple(made))

    def _next_number(self, item: SourceItem) -> int:
        self._num_figures[item.id] = self._num_figures.get(item.id, 0) + 1
        return self._num_figures[item.id]


def _opened(data: bytes) -> list[Image.Image]:
    """Return an embedded picture; none if it is of a kind that is not read, such as a drawing."""
    try:
        return [open_image(data)]
    except UserError:
        return []


class ResultLog(Protocol):
    """What resuming needs of a `LineFile`."""

    @property
    def keys(self) -> Set[str]: ...

    def line(self, key: str) -> Any: ...

    def append(self, line: Mapping[str, Any]) -> None: ...


def resume(
    items: Sequence[SourceItem],
    log: ResultLog,
    read: Callable[[Sequence[SourceItem]], Iterator[ItemResult]],
    report: Callable[[], None] = lambda: None,
) -> Iterator[ItemResult]:
    """Yield the result of each item: from the log if it is there, else it is read and logged.

    `report` is called after each item that was read. Raise UserError if the log has items of another job.
    """
    foreign = log.keys - {item.id for item in items}
    if foreign:
        raise UserError(f"the log of pages belongs to another job: this one has no page {sorted(foreign)[0]!r}")
    done = set(log.keys)
    fresh = read([item for item in items if item.id not in done])
    for item in items:
        if item.id in done:
            yield ItemResult.from_dict(item, log.line(item.id))
            continue
        result = next(fresh)
        log.append(result.to_dict())
        report()
        yield result


def assemble(results: Iterable[ItemResult]) -> Iterator[ReadDocument]:
    """Yield a document for each file, from the results of its items, which must follow each other."""
    kept: list[ItemResult] = []
    for result in results:
        if kept and kept[0].item.file != result.item.file:
            yield _document(kept)
            kept = []
        kept.append(result)
    if kept:
        yield _document(kept)


def _document(results: Sequence[ItemResult]) -> ReadDocument:
    pages = tuple(page for result in results for page in result.pages)
    return ReadDocument(
        name=results[0].item.file,
        pages=pages,
        blocks=tuple(join_pages(pages)),
        errors=tuple((result.item.number, result.error) for result in results if result.error is not None),
    )


def read(
    inputs: str | Path | Sequence[str | Path],
    model: PageModel | None = None,
    *,
    pages: str | None = None,
    dpi: int = 144,
    text_layer: UseLayer = "auto",
    figures: str | Path | None = None,
    options: GenerateOptions | None = None,
    allow_private_urls: bool = False,
) -> Iterator[ReadDocument]:
    """Yield each document with its blocks, in reading order.

    `inputs` are images, PDF, DOCX, PPTX and HTML files, folders of them, and http(s) URLs. `model` is a `VLM`; without
    one, pages whose picture must be read are in `errors`. `pages` of PDF files and slides is like "3", "2-5" or "2-".
    Boxes are in pixels of pages as rendered at `dpi`. `text_layer` is "auto" (where it is good), "always" or "never".
    `figures` is a folder into which figures are cut out. Raise UserError, with the first document, for inputs that are
    not there or not supported.
    """
    first, last = page_range(pages)
    chosen = SourceOptions(
        dpi=dpi, first=first, last=last, text_layer=text_layer, allow_private_urls=allow_private_urls
    )
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    with Sources(names, chosen) as sources:
        reader = PageReader(
            load_model=None if model is None else lambda: model,
            options=options or READ_OPTIONS,
            write_figure=None if figures is None else figure_writer(local_path(figures), sources.items, Path()),
        )
        yield from assemble(reader.read(sources.items))


def figure_writer(
    folder: Path, items: Sequence[SourceItem], linked_from: Path
) -> Callable[[SourceItem, int, Image.Image], str]:
    """Return the function that writes a figure as STEM-NUMBER.png and returns its address from another folder."""
    stems = file_stems(item.id for item in items)

    def write(item: SourceItem, number: int, picture: Image.Image) -> str:
        path = folder / f"{stems[item.id]}-{number}.png"
        try:
            write_picture(picture, path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        return link_from(linked_from, path)

    return write
