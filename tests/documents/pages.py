"""Pages for tests: PDF files on disk, and models that answer with what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.pdf_files import Mark, placed_pdf
from vl2.documents.block import DocumentBlock, DocumentPage
from vl2.documents.pdf_page import read_pdf_page
from vl2.documents.text_layer import layer_page
from vl2.infer.reply import Reply, Usage

SENTENCES = (
    "The river rises in the northern hills and turns east below the old town, where three smaller streams join it. "
    "In spring the meadows on both banks are flooded for several weeks, and the ferry does not run. "
    "Farmers then move their cattle to the higher ground behind the church."
)


def write_pdf(path: Path, *pages: Sequence[Mark], rotate: int = 0) -> Path:
    path.write_bytes(placed_pdf(pages, rotate=rotate))
    return path


def layer_pages(path: Path, num_pages: int = 1) -> list[DocumentPage]:
    """Return the pages of the text layer at two pixels a point."""
    pages = []
    for number in range(1, num_pages + 1):
        content = read_pdf_page(path, number)
        size = round(2 * content.size_pt[0]), round(2 * content.size_pt[1])
        pages.append(layer_page(content, number, size))
    return pages


def texts(blocks: Sequence[DocumentBlock]) -> list[tuple[str, str]]:
    return [(block.type, block.text) for block in blocks]


class Answering:
    """A stand-in for a model: it answers with these texts, in turn, and keeps what it was asked."""

    def __init__(self, *answers: str, kind: Any = "DeepSeek-OCR") -> None:
        self.processor = SimpleNamespace(kind=kind)
        self.answers = list(answers)
        self.asked: list[Any] = []

    def batch(self, requests: Sequence[Any]) -> list[Reply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Reply:
        self.asked.append(request)
        usage = Usage(prompt_tokens=1, visual_tokens=1, completion_tokens=1)
        return Reply(text=self.answers.pop(0), token_ids=(1,), finish_reason="stop", usage=usage,
                     image_sizes=(request.messages[0].images[0].size,), kind=self.processor.kind)  # fmt: skip
