"""The command `vl2 read`, which prints the text of a document page by page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from vl2.cli.log_flags import LogFlags
from vl2.errors import UserError
from vl2.files import local_path

if TYPE_CHECKING:
    from vl2.batch_job.item import BatchItem, BatchRequest
    from vl2.infer.reply import Reply
    from vl2.model_kind import ModelKind


@dataclass(frozen=True, kw_only=True)
class Read:
    """Print the text of images and PDF files, page by page.

    Examples:
      vl2 read examples/word.png
      vl2 read examples/word.png examples/line.png --json
      vl2 read report.pdf --pages 2-5 --model tiny > report.txt
      vl2 read scan.pdf --model deepseek-ai/DeepSeek-OCR > scan.md
      vl2 read scan.pdf --model deepseek-ai/DeepSeek-OCR --figures figures/ --draw boxes/ --tables markdown > scan.md
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """images, PDF files, or folders of them"""
    pages: Annotated[str | None, tyro.conf.arg(metavar="FROM-TO", help_behavior_hint="")] = None
    """of a PDF file, only these pages: 3, 2-5 or 2-"""
    dpi: int = 144
    """how finely pages of PDF files are drawn"""
    figures: OptionalFolder = None
    """cut figures out into this folder, and link them (DeepSeek-OCR family)"""
    tables: Literal["html", "markdown"] = "html"
    """how tables are written (DeepSeek-OCR family); those that Markdown cannot express stay HTML"""
    draw: OptionalFolder = None
    """write each page, with the boxes of its blocks, into this folder"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: BatchFlags = field(default_factory=BatchFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    log: LogFlags = field(default_factory=LogFlags)

    def run(self) -> None:
        from vl2.batch_job.exports import file_stems
        from vl2.batch_job.file_items import file_items, page_range
        from vl2.cli.answer import print_stream
        from vl2.infer.prompts import read_prompt

        first, last = page_range(self.pages)
        options = self.generate.options()
        kind = self.model.kind(quiet=self.output.quiet)
        prompt = read_prompt(kind)
        items = file_items(self.files, prompt, options, dpi=self.dpi)
        items = [item for item in items if first <= item.about.get("page", first) <= last]
        if not items:
            raise UserError(f"there is no page {self.pages} in {', '.join(self.files)}")
        self._check_folders(kind, items)
        self.model.check()
        for item in items:  # report unreadable files before the model is loaded
            _check_readable(item)
        log = self.log.start("read", self.model.model)
        check_answer_length(self.model, self.generate, quiet=self.output.quiet)
        vlm = self.model.load(quiet=self.output.quiet)
        stems = file_stems(item.id for item in items)
        for number, item in enumerate(items):
            request = item.read()
            names = [source if isinstance(source, str) else item.id for source in request.images]
            log.begin()
            if number and not self.output.json:
                print()
            if len(items) > 1 and not (self.output.quiet or self.output.json):
                print(f"vl2: {item.id}", file=sys.stderr)
            if kind == "DeepSeek-VL2" and not self.output.json:
                stream = vlm.stream(prompt, request.images, **option_fields(request.options))
                print_stream(stream)
                log.add(request.turns, stream.reply, option_fields(request.options), names=names)
                self._draw(stream.reply, request, stems[item.id])
                continue
            # The tags of blocks are taken out of the whole answer.
            reply = vlm.chat(prompt, request.images, **option_fields(request.options))
            log.add(request.turns, reply, option_fields(request.options), names=names)
            page = self._page(reply, request, stems[item.id])
            if self.output.json:
                print_json({"id": item.id, **item.about, **page, "finish_reason": reply.finish_reason}, indent=None)
            else:
                print(page["text"], flush=True)
            self._draw(reply, request, stems[item.id])

    def _check_folders(self, kind: ModelKind, items: Sequence[BatchItem]) -> None:
        """Raise UserError, before the model is loaded, for what could not be written afterwards."""
        from vl2.cli.answer import check_picture_folder

        if kind == "DeepSeek-VL2" and (self.figures is not None or self.tables != "html"):
            raise UserError(
                "--figures and --tables are for the DeepSeek-OCR family; DeepSeek-VL2 answers in plain text"
            )
        for flag, folder in (("--figures", self.figures), ("--draw", self.draw)):
            if folder is not None:
                check_picture_folder(folder, flag, items)

    def _page(self, reply: Reply, request: BatchRequest, stem: str) -> dict[str, Any]:
        """Return what was read, as data: the text, and of the DeepSeek-OCR family the blocks too. Write its figures."""
        from vl2.batch_job.markdown_export import links_from, write_figures
        from vl2.process.grounding import without_boxes
        from vl2.process.image import open_image
        from vl2.process.page_blocks import to_markdown

        if reply.kind == "DeepSeek-VL2":
            return {"text": without_boxes(reply.text)}
        figures: dict[int, list[str]] = {}
        if self.figures is not None:
            pages = [open_image(source) for source in request.images][-reply.num_pages :]
            figures = links_from(Path(), write_figures(reply.blocks, pages, local_path(self.figures), stem))
        blocks = [
            {**block.to_dict(), **({"figures": figures[index]} if index in figures else {})}
            for index, block in enumerate(reply.blocks)
        ]
        return {"text": to_markdown(reply.blocks, tables=self.tables, figures=figures), "blocks": blocks}

    def _draw(self, reply: Reply, request: BatchRequest, stem: str) -> None:
        from vl2.batch_job.exports import draw_answer
        from vl2.process.image import open_image

        if self.draw is not None:
            path = local_path(self.draw) / f"{stem}.png"
            try:
                draw_answer(path, reply, open_image(request.images[-1]))
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}") from None


def _check_readable(item: BatchItem) -> None:
    """Raise UserError for an image or a PDF file that cannot be opened. Only the first page of a PDF is checked."""
    from vl2.process.image import open_image

    if item.about.get("page", 1) == 1:
        for source in item.read().images:
            open_image(source)
