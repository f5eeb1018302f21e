"""The command `vl2 read`, which prints the text of a document page by page."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vl2.cli.batch import BatchFlags
from vl2.cli.flags import ModelFlags, OutputFlags, check_answer_length, option_fields, print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.batch_job.item import BatchItem
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
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """images, PDF files, or folders of them"""
    pages: Annotated[str | None, tyro.conf.arg(metavar="FROM-TO", help_behavior_hint="")] = None
    """of a PDF file, only these pages: 3, 2-5 or 2-"""
    dpi: int = 144
    """how finely pages of PDF files are drawn"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: BatchFlags = field(default_factory=BatchFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
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
        self.model.check()
        for item in items:  # report unreadable files before the model is loaded
            _check_readable(item)
        check_answer_length(self.model, self.generate, quiet=self.output.quiet)
        vlm = self.model.load(quiet=self.output.quiet)
        for number, item in enumerate(items):
            request = item.read()
            if self.output.json:
                reply = vlm.chat(prompt, request.images, **option_fields(request.options))
                print_json({"id": item.id, **item.about, **_read(reply, kind),
                            "finish_reason": reply.finish_reason}, indent=None)  # fmt: skip
                continue
            if number:
                print()
            if len(items) > 1 and not self.output.quiet:
                print(f"vl2: {item.id}", file=sys.stderr)
            if kind == "DeepSeek-VL2":
                print_stream(vlm.stream(prompt, request.images, **option_fields(request.options)))
            else:  # the tags of its blocks are taken out of the whole
                print(vlm.chat(prompt, request.images, **option_fields(request.options)).markdown, flush=True)


def _read(reply: Reply, kind: ModelKind) -> dict[str, Any]:
    """Return what was read, as data: the text, and of the DeepSeek-OCR family the blocks too."""
    from vl2.process.grounding import without_boxes

    if kind == "DeepSeek-VL2":
        return {"text": without_boxes(reply.text)}
    return {"text": reply.markdown, "blocks": [block.to_dict() for block in reply.blocks]}


def _check_readable(item: BatchItem) -> None:
    """Raise UserError for an image or a PDF file that cannot be opened. Only the first page of a PDF is checked."""
    from vl2.process.image import open_image

    if item.about.get("page", 1) == 1:
        for source in item.read().images:
            open_image(source)
