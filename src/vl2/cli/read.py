"""The command `vl2 read`, which reads documents: text layers as they are, and pictures of pages by a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vl2.cli.batch import BatchFlags
from vl2.cli.flags import (
    ModelFlags,
    OptionalFolder,
    OutputFlags,
    check_answer_length,
    option_fields,
    print_json,
)
from vl2.cli.log_flags import CommandLog, LogFlags
from vl2.errors import UserError
from vl2.files import local_path, write_whole
from vl2.progress import ProgressDisplay

if TYPE_CHECKING:
    from PIL import Image

    from vl2.documents.block import ReadDocument
    from vl2.documents.read import ItemResult
    from vl2.documents.sources import SourceItem
    from vl2.infer.reply import Reply
    from vl2.infer.vlm import VLM, Request

Format = Literal["md", "html", "json", "docling"]
SUFFIXES: dict[Format, str] = {"md": ".md", "html": ".html", "json": ".json", "docling": ".json"}


@dataclass(frozen=True, kw_only=True)
class Read:
    """Read documents, images, web pages and URLs as Markdown, HTML or JSON.

    A PDF page with a good text layer is read from it. Of other pages and of images a model reads the picture; it is
    loaded when the first of them comes. Headers, footers and page numbers are left out, and what pages cut is joined.
    With -o, the same command goes on where it was stopped.

    Examples:
      vl2 read examples/word.png
      vl2 read examples/word.png examples/line.png --json
      vl2 read report.pdf --pages 2-5 --model tiny > report.md
      vl2 read papers/ slides.pptx https://example.org/page.html -o markdown/ --figures figures/ --model tiny
      vl2 read scan.pdf --model deepseek-ai/DeepSeek-OCR --figures figures/ --draw boxes/ --tables markdown > scan.md
      vl2 read report.pdf --format docling -o report.json --model tiny
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """images, PDF, DOCX, PPTX and HTML files, folders of them, or http(s) URLs"""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="OUT", help_behavior_hint="")] = None
    """file for one document, or folder for a file per document (default: print)"""
    format: Format = "md"
    """Markdown, HTML, JSON with all blocks, or docling's JSON"""
    pages: Annotated[str | None, tyro.conf.arg(metavar="FROM-TO", help_behavior_hint="")] = None
    """of PDF files and slides, only these pages: 3, 2-5 or 2-"""
    text_layer: Literal["auto", "always", "never"] = "auto"
    """of PDF pages: use it where it is good, always, or have the model read every page"""
    headers: bool = False
    """keep headers, footers and page numbers"""
    dpi: int = 144
    """how finely pages of PDF files are drawn"""
    figures: OptionalFolder = None
    """cut figures out into this folder, and link them"""
    tables: Literal["html", "markdown"] = "html"
    """how Markdown has tables; those that Markdown cannot express stay HTML"""
    draw: OptionalFolder = None
    """write each page, with the boxes of its blocks, into this folder"""
    allow_private_urls: bool = False
    """fetch URLs of this machine and of private networks too"""
    fresh: bool = False
    """with -o, begin again, and remove what an earlier run left"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: BatchFlags = field(default_factory=BatchFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    log: LogFlags = field(default_factory=LogFlags)

    def run(self) -> None:
        from vl2.batch_job.file_items import page_range
        from vl2.documents.docling import require_docling
        from vl2.documents.read import PageReader, figure_writer
        from vl2.documents.sources import SourceOptions, Sources

        first, last = page_range(self.pages)
        options = SourceOptions(dpi=self.dpi, first=first, last=last, text_layer=self.text_layer,
                                allow_private_urls=self.allow_private_urls)  # fmt: skip
        if self.format == "docling":
            require_docling()
        if self.output.json and (self.out is not None or self.format != "md"):
            raise UserError("--json prints a line per page; --format json and -o are for whole documents")
        generate = self.generate.options()
        with Sources(self.files, options, leave_out=self._written()) as sources:
            items = sources.items
            self._check(items)
            folder = Path() if self.out is None else self._outputs(items)[0].parent
            writer = None if self.figures is None else figure_writer(local_path(self.figures), items, folder)
            log = self.log.start("read", self.model.model)
            reader = PageReader(
                load_model=self._load, options=generate, write_figure=writer, on_reply=partial(_keep, log)
            )
            if self.out is None:
                num_failed = self._print(self._drawn(reader.read(items), items))
            else:
                num_failed = self._write(items, lambda left: self._drawn(reader.read(left), items))
        if num_failed:
            raise UserError(f"{num_failed} of {len(items)} pages could not be read")

    def _written(self) -> list[Path]:
        """Return the folders for results, which are no input."""
        written = [local_path(name) for name in (self.figures, self.draw) if name is not None]
        return written if self.out is None or local_path(self.out).suffix else [*written, local_path(self.out)]

    def _check(self, items: Sequence[SourceItem]) -> None:
        """Raise UserError, before the model is loaded, for what cannot be read, or not be written afterwards."""
        from vl2.batch_job.item import check_unique_ids
        from vl2.cli.answer import check_file, check_picture_folder

        check_unique_ids(item.id for item in items)
        pictures = [item for item in items if item.picture is not None]
        is_structured = self.figures is not None or self.tables != "html"
        only_pictures = len(pictures) == len(items)
        if is_structured and only_pictures and self.model.kind(quiet=self.output.quiet) == "DeepSeek-VL2":
            raise UserError(
                "--figures and --tables are for documents and for the DeepSeek-OCR family; DeepSeek-VL2 reads a "
                "picture as plain text"
            )
        for flag, folder in (("--figures", self.figures), ("--draw", self.draw)):
            if folder is not None:
                inputs = [item.picture for item in pictures if item.picture is not None]
                check_picture_folder(folder, flag, (item.id for item in items), inputs)
        if self.out is not None:
            for path in self._outputs(items):
                check_file(path, "-o")
        elif self.format in ("json", "docling") and len({item.file for item in items}) > 1:
            raise UserError(f"--format {self.format} of several documents needs a folder: give -o FOLDER")
        self.model.check()
        for item in pictures:  # report unreadable files before the model is loaded
            item.load()
        if pictures:
            check_answer_length(self.model, self.generate, quiet=self.output.quiet)

    def _load(self) -> VLM:
        check_answer_length(self.model, self.generate, quiet=self.output.quiet)
        return self.model.load(quiet=self.output.quiet)

    def _outputs(self, items: Sequence[SourceItem]) -> list[Path]:
        """Return the file for each document, in their order."""
        from vl2.batch_job.exports import file_stems

        out, suffix = local_path(self.out or ""), SUFFIXES[self.format]
        stems = file_stems(item.file for item in items).values()
        if not out.suffix:
            return [out / f"{stem}{suffix}" for stem in stems]
        if out.suffix.lower() != suffix:
            raise UserError(f"-o must be a {suffix} file or a folder for --format {self.format}, got {self.out}")
        if len(stems) > 1:
            raise UserError(f"-o {self.out} is one file, and there are {len(stems)} documents: name a folder")
        if out.resolve() in {local_path(name).resolve() for name in self.files if "://" not in name}:
            raise UserError(f"-o {self.out} is one of the inputs: name another file")
        return [out]

    def _print(self, results: Iterable[ItemResult]) -> int:
        """Print documents, or lines of pages. Return the number of errors."""
        from vl2.documents.read import assemble

        num_failed = 0
        if self.output.json:
            for result in results:
                num_failed += result.error is not None
                self._print_lines(result)
            return num_failed
        for number, document in enumerate(assemble(results)):
            if number:
                print()
            print(self._shown(document), end="", flush=True)
            num_failed += self._report_errors(document)
        return num_failed

    def _print_lines(self, result: ItemResult) -> None:
        from vl2.documents.write import to_markdown

        about = {"id": result.item.id, "file": result.item.file}
        if result.error is not None:
            print_json({**about, "page": result.item.number, "error": result.error}, indent=None)
        for page in result.pages:
            text = to_markdown(page.blocks, tables=self.tables)
            print_json({**about, "text": text, **page.to_dict()}, indent=None)

    def _write(self, items: Sequence[SourceItem], read: Callable[[Sequence[SourceItem]], Iterator[ItemResult]]) -> int:
        """Write a file per document. Pages are logged as they are read, and those in the log are not read again."""
        from vl2.batch_job.item import LineFile
        from vl2.batch_job.run_batch import check_settings, remove_job, store_settings
        from vl2.documents.read import assemble, resume

        outputs = self._outputs(items)
        log_path = self._log_path()
        if self.fresh:
            remove_job(log_path)
        check_settings(log_path, self._settings())
        store_settings(log_path, self._settings())
        num_failed = 0
        with LineFile(log_path) as log, ProgressDisplay(len(items), quiet=self.output.quiet) as display:
            display.done = display.done_before = sum(item.id in log.keys for item in items)

            def report() -> None:
                display.done += 1
                display.show("reading", line=f"vl2: {display.done} of {len(items)} pages")

            try:
                for output, document in zip(outputs, assemble(resume(items, log, read, report)), strict=True):
                    write_whole(output, self._shown(document))
                    num_failed += self._report_errors(document)
            except KeyboardInterrupt:
                self._say("stopped; the same command goes on from there")
                raise
        shown = outputs[0] if len(outputs) == 1 else f"{len(outputs)} documents in {outputs[0].parent}"
        self._say(f"{len(items) - num_failed} of {len(items)} pages read: {shown}")
        return num_failed

    def _log_path(self) -> Path:
        out = local_path(self.out or "")
        return out.with_name(f"{out.stem}.pages.jsonl") if out.suffix else out / "pages.jsonl"

    def _settings(self) -> dict[str, str]:
        """Return the settings that influence what is read."""
        names = ("model", "adapter", "tiling", "max_tiles", "revision", "weights", "cache", "dtype", "max_context")
        model = {name: getattr(self.model, name) for name in names}
        generate = {name: getattr(self.generate, name) for name in self.generate.__dataclass_fields__}
        rest = {"pages": self.pages, "dpi": self.dpi, "text_layer": self.text_layer, "figures": self.figures}
        return {name: str(value) for name, value in {**model, **generate, **rest}.items()}

    def _shown(self, document: ReadDocument) -> str:
        """Return what is printed or written of a document."""
        from vl2.documents.docling import to_docling
        from vl2.documents.write import to_html, to_json, to_markdown

        blocks = document.blocks if self.headers else document.body
        if self.format == "html":
            return to_html(document, blocks)
        if self.format == "json":
            return to_json(document)
        if self.format == "docling":
            return json.dumps(to_docling(document).export_to_dict(), ensure_ascii=False, indent=2) + "\n"
        return to_markdown(blocks, tables=self.tables) + "\n"

    def _drawn(self, results: Iterator[ItemResult], items: Sequence[SourceItem]) -> Iterator[ItemResult]:
        """Yield the results, after drawing their pages if that is wanted."""
        from vl2.batch_job.exports import file_stems, write_picture

        stems = {} if self.draw is None else file_stems(item.id for item in items)
        for result in results:
            if self.draw is not None and result.error is None and result.item.draw is not None:
                path = local_path(self.draw) / f"{stems[result.item.id]}.png"
                try:
                    write_picture(_draw(result), path)
                except OSError as error:
                    raise UserError(f"cannot write {path}: {error.strerror}") from None
            yield result

    def _report_errors(self, document: ReadDocument) -> int:
        for number, error in document.errors:
            print(f"vl2: page {number} of {document.name}: {error}", file=sys.stderr)
        return len(document.errors)

    def _say(self, text: str) -> None:
        if not self.output.quiet:
            print(f"vl2: {text}", file=sys.stderr)


def _keep(log: CommandLog, item: SourceItem, request: Request, reply: Reply) -> None:
    """Write a page that the model read into the log of answers."""
    from vl2.process.messages import to_turns

    name = item.id if item.picture is None else str(item.picture)
    log.add(to_turns(request.messages), reply, option_fields(request.options), names=[name])
    log.begin()


def _draw(result: ItemResult) -> Image.Image:
    """Return the picture of a page with the boxes of its blocks."""
    from vl2.infer.reply import draw_boxes
    from vl2.process.grounding import Box, box_to_999

    assert result.item.draw is not None
    image = result.item.draw()
    boxes = [
        Box(label=block.label or block.type, xyxy_999=box_to_999(place.box_px, image.size), xyxy_px=place.box_px,
            image_index=0)
        for page in result.pages
        for block in page.blocks
        for place in block.places
        if place.box_px is not None
    ]  # fmt: skip
    return draw_boxes(image, boxes)
