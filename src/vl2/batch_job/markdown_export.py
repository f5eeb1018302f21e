"""Export the answers of a job as Markdown: a heading for each file, a comment for each page, figures as linked files.

Figures are cut out where the answers of the DeepSeek-OCR family have blocks that are pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from vl2.batch_job.exports import file_stems, write_picture
from vl2.batch_job.item import BatchItem, item_id
from vl2.errors import UserError
from vl2.files import write_whole
from vl2.process.grounding import without_boxes
from vl2.process.image import open_image
from vl2.process.page_blocks import PageBlock, parse_blocks, to_markdown
from vl2.process.page_figures import cut_figures
from vl2.process.page_tables import TableFormat

FigureFiles = dict[int, list[Path]]  # by the index of the block that is a picture


def write_figures(blocks: Sequence[PageBlock], pages: Sequence[Image.Image], folder: Path, stem: str) -> FigureFiles:
    """Write the figures of one answer as STEM-1.png, STEM-2.png and so on. Raise UserError if that fails."""
    files: FigureFiles = {}
    number = 0
    for index, figures in cut_figures(blocks, pages).items():
        for figure in figures:
            number += 1
            path = folder / f"{stem}-{number}.png"
            try:
                write_picture(figure, path)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}") from None
            files.setdefault(index, []).append(path)
    return files


def links_from(folder: Path, files: FigureFiles) -> dict[int, list[str]]:
    """Return the addresses of the figures for a Markdown file in this folder."""
    return {index: [link_from(folder, path) for path in paths] for index, paths in files.items()}


def link_from(folder: Path, path: Path) -> str:
    """Return the address of a file for a page in this folder."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def figures_folder(path: Path) -> Path:
    """Return the folder for the figures of a Markdown file or of a folder of Markdown files."""
    return path.with_name(f"{path.stem}-figures") if path.suffix.lower() == ".md" else path / "figures"


@dataclass(frozen=True, kw_only=True)
class MarkdownExport:
    """How the lines of a job become Markdown."""

    path: Path  # a .md file, or the folder for a file per document
    items: Sequence[BatchItem] = ()  # whose images figures are cut from
    tables: TableFormat = "html"

    @cached_property
    def _stems(self) -> dict[str, str]:
        return file_stems(item.id for item in self.items)

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write one file if the path ends in .md, else one file per document into the folder."""
        documents = self._documents(lines)
        if self.path.suffix.lower() == ".md":
            write_whole(self.path, "\n\n".join(f"# {name}\n\n{text}" for name, text in documents.items()) + "\n")
            return
        stems = file_stems(documents)
        for name, text in documents.items():
            write_whole(self.path / f"{stems[name]}.md", text + "\n")

    def _documents(self, lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Return the text of each document by its name."""
        images = {item.id: item.read for item in self.items}
        parts: dict[str, list[str]] = {}
        for line in lines:
            page = f"<!-- page {line['page']} -->\n\n" if "page" in line else ""
            if "error" in line:
                text = f"*not read: {line['error']}*"
            elif "blocks" not in line:
                text = without_boxes(line["text"])
            else:
                request = images.get(item_id(line))
                text = self._page(line, [] if request is None else request().images)
            parts.setdefault(line.get("file", line["id"]), []).append(page + text)
        return {name: "\n\n".join(texts) for name, texts in parts.items()}

    def _page(self, line: Mapping[str, Any], sources: Sequence[Any]) -> str:
        """Return the Markdown of a line with blocks, after writing its figures."""
        blocks = parse_blocks(line["text"])
        if not any(block.is_picture and block.boxes_999 for block in blocks) or not sources:
            return to_markdown(blocks, tables=self.tables)
        pages = [open_image(source) for source in sources][-(1 + max(block.page for block in blocks)) :]
        blocks = parse_blocks(line["text"], [page.size for page in pages])
        files = write_figures(blocks, pages, figures_folder(self.path), self._stems[item_id(line)])
        folder = self.path.parent if self.path.suffix.lower() == ".md" else self.path
        return to_markdown(blocks, tables=self.tables, figures=links_from(folder, files))
