"""A finished job as Markdown: a heading per file, a comment per page, the text without grounding tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vl2.batch_job.coco import write_whole
from vl2.batch_job.drawing import file_stems
from vl2.process.grounding import without_boxes


def to_markdown(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return one document with all answers."""
    return "\n\n".join(f"# {name}\n\n{text}" for name, text in _documents(lines).items()) + "\n"


def write_markdown(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one file, or into a folder one file per document."""
    if path.suffix.lower() == ".md":
        write_whole(path, to_markdown(lines))
        return
    documents = _documents(lines)
    stems = file_stems(documents)
    for name, text in documents.items():
        write_whole(path / f"{stems[name]}.md", text + "\n")


def _documents(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    parts: dict[str, list[str]] = {}
    for line in lines:
        text = f"*not read: {line['error']}*" if "error" in line else without_boxes(line["text"])
        page = f"<!-- page {line['page']} -->\n\n" if "page" in line else ""
        parts.setdefault(line.get("file", line["id"]), []).append(page + text)
    return {name: "\n\n".join(texts) for name, texts in parts.items()}
