"""How well `vl2 read` reads real PDF files: their text layers against another extractor, and their pictures' path.

    python benchmarks/read_documents.py FOLDER --to OUT [--first 1] [--pages 3] [--receipts SROIE_FOLDER]

FOLDER holds PDF files. Some pages of each are read from the text layer and compared with what poppler's
`pdftotext` (package poppler-utils) says of the same pages. Three figures of each file, all of normalized words:

- found: the part of pdftotext's words that are there, and right: the part of ours that pdftotext has too;
- order: 1 less the edit distance of the two sequences of words, divided by the longer one's length. pdftotext has two
  orders: by columns, which tears titles from their page numbers, and by rows (-layout), which mixes columns. Of each
  page the closer one counts.

Then every page is read once more as a picture by a perfect reader: a stand-in for a model that answers with the
page's own blocks in the form of DeepSeek-OCR. What the document is made of must be the same words; "lost" counts those
that are not. With --receipts, photographed receipts are read by a perfect reader that knows their words.

OUT gets a Markdown file for each document, to be looked at, and `figures.md`. A file takes some seconds.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vl2.documents import DocumentBlock, read, to_markdown
from vl2.documents.block import DocumentPage
from vl2.eval.score.text_rules import edit_distance
from vl2.files import write_whole
from vl2.infer.reply import Reply, Usage
from vl2.process.grounding import box_to_999, format_boxes
from vl2.process.pdf import count_pages

LABELS = {"heading": "title", "paragraph": "text", "list_item": "text", "figure": "image", "formula": "equation"}
HYPHENS = "-\u2010\u2011\u2012\u2013\u2014\u2212\u00ad"


@dataclass(frozen=True)
class Scores:
    """Of one document."""

    num_pages: int
    num_words: int
    found: float
    right: float
    order: float
    seconds_per_page: float
    num_lost: int


class PerfectReader:
    """A stand-in for a DeepSeek-OCR that makes no mistake: it answers with the pages that it is given, in turn."""

    def __init__(self, pages: Sequence[DocumentPage]) -> None:
        self.processor = SimpleNamespace(kind="DeepSeek-OCR")
        self._pages = list(pages)

    def batch(self, requests: Sequence[Any]) -> list[Reply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Reply:
        page, size = self._pages.pop(0), request.messages[0].images[0].size
        text = "\n\n".join(tagged(block, size) for block in page.blocks)
        usage = Usage(prompt_tokens=1, visual_tokens=1, completion_tokens=1)
        return Reply(text=text, token_ids=(1,), finish_reason="stop", usage=usage, image_sizes=(size,),
                     kind="DeepSeek-OCR")  # fmt: skip


def tagged(block: DocumentBlock, size: tuple[int, int]) -> str:
    """Return a block as DeepSeek-OCR writes it."""
    boxes = [box_to_999(place.box_px, size) for place in block.places if place.box_px is not None]
    return f"{format_boxes(LABELS.get(block.type, block.type), boxes)}\n{to_markdown([block])}"


def words_of(text: str) -> list[str]:
    """Return the words of a text without what extractors may do differently: case, hyphens, punctuation, leaders."""
    text = unicodedata.normalize("NFKC", re.sub(r"<[^<>]*>|\\", " ", text)).casefold()
    text = re.sub(rf"[{HYPHENS}]\s*\n\s*(?=\w)", "", text)
    text = re.sub(r"([\u2e80-\u9fff])", r" \1 ", text)  # each Chinese character is a word
    return re.findall(r"\w+", re.sub(rf"[{HYPHENS}_'’]", "", text))


def pdftotext(path: Path, page: int, *flags: str) -> str:
    command = ["pdftotext", *flags, "-f", str(page), "-l", str(page), path.as_posix(), "-"]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode("utf-8", "replace")


def order_of(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return 1 less the normalized edit distance of two sequences of words."""
    signs: dict[str, str] = {}
    a, b = ("".join(signs.setdefault(word, chr(0x4E00 + len(signs))) for word in words) for words in (ours, theirs))
    return 1 - edit_distance(a, b) / max(1, len(a), len(b))


def measure(path: Path, first: int, num_pages: int, to: Path) -> Scores:
    """Read a file, write its Markdown, and return its scores."""
    began = time.monotonic()
    pages = f"{first}-{first + num_pages - 1}"
    (document,) = read(path, pages=pages, text_layer="always")
    seconds = time.monotonic() - began
    write_whole(to / f"{path.stem}.md", to_markdown(document.body) + "\n")
    ours: list[str] = []
    theirs: list[str] = []
    orders: list[tuple[float, int]] = []
    for page in document.pages:
        mine, other = words_of(shown(page.blocks)), words_of(pdftotext(path, page.number))
        by_rows = words_of(pdftotext(path, page.number, "-layout"))
        order = max(order_of(mine, other), order_of(mine, by_rows))
        orders.append((order, max(len(mine), len(other))))
        ours += mine
        theirs += other
    common = sum((Counter(ours) & Counter(theirs)).values())
    total = sum(count for _, count in orders)
    return Scores(
        num_pages=len(document.pages),
        num_words=len(theirs),
        found=common / max(1, len(theirs)),
        right=common / max(1, len(ours)),
        order=sum(order * count for order, count in orders) / max(1, total),
        seconds_per_page=seconds / max(1, len(document.pages)),
        num_lost=num_lost(path, document.pages, pages),
    )


def shown(blocks: Sequence[DocumentBlock]) -> str:
    """Return the text of blocks with the numbers of list items."""
    return "\n\n".join(f"{block.marker} {block.text}" for block in blocks)


def num_lost(path: Path, pages: Sequence[DocumentPage], numbers: str) -> int:
    """Return how many words of the pages are not in the document that a perfect reader's answers become."""
    model = PerfectReader(pages)
    (document,) = read(path, model, pages=numbers, text_layer="never")  # type: ignore[arg-type]
    given = Counter(words_of("\n".join(to_markdown([block]) for page in pages for block in page.blocks)))
    # A word that a page break cut is whole afterwards, so the text is compared without spaces.
    letters = Counter("".join(words_of("\n".join(to_markdown([block]) for block in document.blocks))))
    wanted = Counter("".join(word * count for word, count in given.items()))
    return sum((wanted - letters).values())


def measure_receipts(folder: Path, limit: int) -> tuple[int, int]:
    """Return how many receipts were read by a perfect reader of plain text, and how many letters were lost."""
    import pyarrow.parquet as pq
    from PIL import Image

    count = lost = 0
    with tempfile.TemporaryDirectory() as there:
        for row in pq.ParquetFile(sorted(folder.glob("*.parquet"))[0]).read().slice(0, limit).to_pylist():
            picture = Path(there) / f"{row['id']}.png"
            Image.open(io.BytesIO(row["image"])).save(picture)
            text = "\n".join(line["text"] for line in row["lines"])
            usage = Usage(prompt_tokens=1, visual_tokens=1, completion_tokens=1)
            size = (row["width"], row["height"])
            reply = Reply(text=text, token_ids=(1,), finish_reason="stop", usage=usage, image_sizes=(size,))
            model = SimpleNamespace(
                processor=SimpleNamespace(kind="DeepSeek-VL2"), batch=lambda requests, reply=reply: [reply]
            )
            (document,) = read(picture, model)  # type: ignore[arg-type]
            wanted = Counter("".join(words_of(text)))
            lost += sum((wanted - Counter("".join(words_of(to_markdown(document.body))))).values())
            count += 1
    return count, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=3, help="pages of each file")
    parser.add_argument("--first", type=int, default=1, help="the first of them; shorter files are left out")
    parser.add_argument("--receipts", type=Path)
    parser.add_argument("--max-receipts", type=int, default=100)
    given = parser.parse_args()
    lines = [
        "| file | pages | words | found | right | order | lost | s a page |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = []
    for path in sorted(given.folder.glob("*.pdf")):
        if count_pages(path) < given.first:
            continue
        s = measure(path, given.first, given.pages, given.to)
        measured.append(s)
        lines.append(
            f"| {path.stem} | {s.num_pages} | {s.num_words} | {s.found:.3f} | {s.right:.3f} | {s.order:.3f} "
            f"| {s.num_lost} | {s.seconds_per_page:.2f} |"
        )
        print(lines[-1], flush=True)
    total = sum(s.num_words for s in measured)

    def mean(name: str) -> float:
        return sum(getattr(s, name) * s.num_words for s in measured) / max(1, total)

    lines.append(
        f"| all, by words | {sum(s.num_pages for s in measured)} | {total} | {mean('found'):.3f} | {mean('right'):.3f} "
        f"| {mean('order'):.3f} | {sum(s.num_lost for s in measured)} | |"
    )
    if given.receipts is not None:
        count, lost = measure_receipts(given.receipts, given.max_receipts)
        lines += ["", f"{count} receipts through a perfect reader: {lost} letters lost."]
    write_whole(given.to / "figures.md", "\n".join(lines) + "\n")
    print("\n".join(lines[-3:]))


if __name__ == "__main__":
    main()
