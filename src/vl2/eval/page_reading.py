"""Ask for the Markdown of a page, and show a page of a PDF file as an image: what the document benchmarks share."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

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


@lru_cache(maxsize=64)  # a run reads its items several times
def pdf_page(path: Path, page: int, longest_px: int = LONGEST_PX) -> bytes:
    """Draw a page of a PDF file, counted from 1, as a PNG with its longer side of `longest_px` pixels.

    Raise UserError if the file cannot be opened or has no such page.
    """
    pdfium = import_extra("pypdfium2", "documents", "drawing pages of PDF files")
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        document = pdfium.PdfDocument(path)
        if not 1 <= page <= len(document):
            raise UserError(f"{path.name} has {len(document)} pages, and page {page} is asked for")
        shown = document[page - 1]
        image = shown.render(scale=longest_px / max(shown.get_size())).to_pil().convert("RGB")
    except pdfium.PdfiumError as error:
        raise UserError(f"cannot read page {page} of {path.name}: {error}") from None
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
