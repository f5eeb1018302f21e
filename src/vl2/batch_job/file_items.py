"""Make batch items from images, PDF files and folders of them: one item for each image or page, in natural order."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from vl2.batch_job.item import BatchItem, BatchRequest
from vl2.errors import UserError
from vl2.files import local_path
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import one_question
from vl2.process.image import ImageSource
from vl2.process.pdf import DEFAULT_DPI, count_pages, draw_page, page_text, require_library

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
KNOWN = (*PICTURES, ".pdf")


def file_items(
    inputs: Sequence[str],
    question: str,
    options: GenerateOptions,
    *,
    dpi: int = DEFAULT_DPI,
    query: str | None = None,
    leave_out: Sequence[Path] = (),
) -> list[BatchItem]:
    """Return the items of files and folders, with the same question for each.

    `query` is the object to locate, if the question asks for one. Folders in `leave_out`, where results are written,
    are skipped when they are below an input folder. A PDF file that cannot be opened becomes one item with an error.
    Raise UserError if a path does not exist, if no file is found, or if pypdfium2 is needed but not installed.
    """
    if not inputs:
        raise UserError("say what to read: images, PDF files or folders of them")
    if not 18 <= dpi <= 600:
        raise UserError(f"dpi must be in 18..600, got {dpi}")
    items = [
        item
        for name, path in input_files(inputs, leave_out)
        for item in (_page_items(name, path, question, options, dpi) if path.suffix.lower() == ".pdf"
                     else [_image_item(name, path, question, options)])
    ]  # fmt: skip
    items = [replace(item, query=query) for item in items]
    if not items:
        raise UserError(f"nothing to read in {', '.join(inputs)}: supported files are {', '.join(KNOWN)}")
    return items


def input_files(
    inputs: Sequence[str], leave_out: Sequence[Path] = (), *, known: Sequence[str] = KNOWN
) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of each input file. The name of a file in a folder is its path within that folder.

    `known` are the suffixes that are taken. Raise UserError for a path that does not exist or has another suffix.
    """
    for text in inputs:
        path = local_path(text)
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file()]
            results = {folder.resolve() for folder in leave_out} - {path.resolve()}
            found = [p for p in found if not results & {*p.resolve().parents}] if results else found
            prefix = f"{path.as_posix()}/" if len(inputs) > 1 else ""
            yield from sorted(((prefix + p.relative_to(path).as_posix(), p) for p in found), key=_natural)
        elif not path.exists():
            raise UserError(f"no file or folder {text}")
        elif path.suffix.lower() not in known:
            also = ", or one .jsonl file of requests" * (known == KNOWN)
            raise UserError(f"{text} is not a supported file: give {', '.join(known)}{also}")
        else:
            yield path.as_posix(), path


def _natural(file: tuple[str, Path]) -> list[tuple[int, str]]:
    """Return a sort key that puts page2 before page10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d{1,9})", file[0])]


def _image_item(name: str, path: Path, question: str, options: GenerateOptions) -> BatchItem:
    return BatchItem(id=name, read=_reader(path.as_posix, question, options), about={"file": name})


def _page_items(name: str, path: Path, question: str, options: GenerateOptions, dpi: int) -> Iterator[BatchItem]:
    require_library()
    try:
        num_pages = count_pages(path)
    except UserError as error:
        reason = error

        def fail() -> BatchRequest:
            raise reason

        yield BatchItem(id=name, read=fail, about={"file": name})
        return
    for number in range(1, num_pages + 1):
        yield BatchItem(
            id=f"{name}#{number}",
            read=partial(_read_page, path, number, dpi, question, options),
            about={"file": name, "page": number},
        )


def _reader(image: Callable[[], ImageSource], question: str, options: GenerateOptions) -> Callable[[], BatchRequest]:
    return lambda: BatchRequest(turns=one_question(question, [image()]), options=options)


def _read_page(path: Path, number: int, dpi: int, question: str, options: GenerateOptions) -> BatchRequest:
    """Return the request for a page. Its text layer is a guess of what the answer says, which makes reading faster."""
    image = draw_page(path, number, dpi)
    if options.speculation and not options.prediction:
        options = replace(options, prediction=page_text(path, number))
    return BatchRequest(turns=one_question(question, [image]), options=options)


def page_range(text: str | None) -> tuple[int, int]:
    """Parse "3", "2-5" or "2-" to the first and the last page. None means all pages."""
    if text is None:
        return 1, sys.maxsize
    first, dash, last = text.partition("-")
    try:
        pages = int(first), int(last) if last else (sys.maxsize if dash else int(first))
    except ValueError:
        pages = 0, 0
    if not 1 <= pages[0] <= pages[1]:
        raise UserError(f"--pages must be like 3, 2-5 or 2-, got {text}")
    return pages
