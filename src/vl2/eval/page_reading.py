"""Ask for the Markdown of a page, and show a page of a PDF file as an image: what the document benchmarks share."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.task import Item, Protocol, Score
from vl2.infer.prompts import read_prompt
from vl2.optional_imports import import_extra
from vl2.process.conversation import user_turn
from vl2.process.page_blocks import parse_blocks, to_markdown

MAX_NEW_TOKENS = 4096
LONGEST_PX = 2048  # of a page drawn from a PDF file


def answer_markdown(answer: str) -> str:
    """Return the Markdown of an answer: without the tags and boxes of the DeepSeek-OCR family, if it has any."""
    return to_markdown(parse_blocks(answer)) if "<|det|>" in answer else answer


def page_protocols(
    score: Callable[[Item, str], Score], says: str, official_prompt: str | None = None
) -> Mapping[str, Protocol]:
    """Return the protocols of a benchmark of pages, which ask differently and are scored alike.

    `official` has the benchmark's prompt, `paper` that of DeepSeek-VL2, and `deepseek-ocr` that of DeepSeek-OCR.
    """

    def protocol(prompt: str) -> Protocol:
        return Protocol(
            ask=lambda item: [user_turn(prompt, item.images)],
            score=lambda item, answer: score(item, answer_markdown(answer)),
            says=says,
            max_new_tokens=MAX_NEW_TOKENS,
        )

    prompts = {"paper": read_prompt(), "deepseek-ocr": read_prompt("DeepSeek-OCR")}
    if official_prompt is not None:
        prompts = {"official": official_prompt, **prompts}
    return {name: protocol(prompt) for name, prompt in prompts.items()}


@dataclass(frozen=True)
class PdfPage:
    """A page of a PDF file as an image source: it is drawn only when it is read, not when its item is made.

    The picture is a PNG whose longer side has LONGEST_PX pixels.
    """

    path: Path
    page: int  # from 1

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        """Raise UserError if the file cannot be opened or has no such page."""
        self._open()

    def read(self, size: int, /) -> bytes:
        """Draw the page. Raise UserError as `check` does; `size`, the most bytes wanted, is checked by the reader."""
        shown = self._open()[self.page - 1]
        image = shown.render(scale=LONGEST_PX / max(shown.get_size())).to_pil().convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def _open(self) -> Any:
        pdfium = import_extra("pypdfium2", "documents", "drawing pages of PDF files")
        if not self.path.is_file():
            raise UserError(f"no file {self.path}")
        try:
            document = pdfium.PdfDocument(self.path)
        except pdfium.PdfiumError as error:
            raise UserError(f"cannot open {self.path.name}: {error}") from None
        if not 1 <= self.page <= len(document):
            raise UserError(f"{self.path.name} has {len(document)} pages, and page {self.page} is asked for")
        return document
