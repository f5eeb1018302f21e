"""Plain text in any language, one passage or article a row, as documents.

    {split}.parquet, {split}-*.parquet, {split}.jsonl
    text; and where there are: id, language, license (or licence), title, author

The split is the name of a file, `enwiki` for enwiki.parquet. What a row says of its language and licence is kept. Text
of more than MAX_CHARACTERS is cut between paragraphs, or else between sentences; a title becomes the first line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from vl2.data.raw_files import Json, Row, find_files, jsonl_rows, parquet_rows
from vl2.data.record import Message, Part, Record
from vl2.datasets.conversion import Conversion, Converted, each, numbered
from vl2.datasets.question_answers import filled, record

MAX_CHARACTERS = 4_000
_PARAGRAPH = re.compile(r"[^\n]*\n|[^\n]+")
_SENTENCE = re.compile(r"[^.!?。！？；]*[.!?。！？；]+\s*|[^.!?。！？；]+")


def read(conversion: Conversion) -> Converted:
    names = (
        f"{conversion.split}.parquet",
        f"{conversion.split}-*.parquet",
        f"data/{conversion.split}-*.parquet",
        f"{conversion.split}.jsonl",
    )
    files = find_files(conversion.folder, *names)
    rows: Iterator[Row]
    if files[0].suffix == ".parquet":
        rows = parquet_rows(files, ("text",), batch_rows=256)
    else:
        rows = (row for path in files for row in jsonl_rows(path))

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, values = row
        licence = values.get("license") or values.get("licence") or conversion.licence
        own = replace(conversion, language=values.get("language") or conversion.language, licence=licence)
        text = filled(values["text"], "text")
        title = " ".join(part.strip() for part in (values.get("title"), _poet(values)) if part)
        pieces = cut(f"{title}\n{text}" if title else text, MAX_CHARACTERS)
        name = f"{conversion.split}-{values.get('id') or number}"
        for at, piece in enumerate(pieces):
            yield document(own, name if len(pieces) == 1 else f"{name}-{at}", piece)

    return each(numbered(rows), make)


def _poet(values: Json) -> str | None:
    """Return who wrote a text that has a title; the authors of an encyclopedia are no part of it."""
    return f"（{values['author']}）" if values.get("title") and values.get("author") else None


def document(conversion: Conversion, id: object, text: str) -> Record:
    return record(conversion, id, [Message(role="document", parts=(Part(text=text),))])


def cut(text: str, limit: int) -> list[str]:
    """Cut a text into pieces of at most `limit` characters, between paragraphs or sentences if it can be."""
    pieces: list[str] = []
    for part in _parts(text, limit):
        if pieces and len(pieces[-1]) + len(part) <= limit:
            pieces[-1] += part
        else:
            pieces.append(part)
    return [piece.strip() for piece in pieces if piece.strip()]


def _parts(text: str, limit: int) -> Iterator[str]:
    """Yield the paragraphs of a text, the sentences of one that is too long, and parts of one that is still."""
    for paragraph in _PARAGRAPH.findall(text):
        for sentence in [paragraph] if len(paragraph) <= limit else _SENTENCE.findall(paragraph):
            yield from (sentence[start : start + limit] for start in range(0, len(sentence), limit))
