"""Converters of text-only datasets: instructions with answers, tables of passages, a dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from vl2.data.json_stream import Row, list_rows
from vl2.data.raw_files import Json, find_files, jsonl_rows, parquet_rows
from vl2.data.record import Message, Part, Record
from vl2.datasets.conversion import Conversion, Converted, convert_rows, numbered
from vl2.datasets.question_answers import converse, record, require_text
from vl2.errors import UserError

# The field names of question and answer; the first pair that a row has is used.
PAIRS = (
    ("question", "answer"),  # GSM8K, Orca-Math
    ("query", "response"),  # MetaMath
    ("instruction", "output"),  # GPT-4-LLM, COIG-CQIA
    ("instruction", "response"),  # Dolly, Magpie
    ("problem", "generated_solution"),  # OpenMathInstruct-2
    ("problem", "solution"),  # Magicoder OSS-Instruct
    ("Problem", "Rationale"),  # MathQA, with `options`: "a ) 38 , b ) 27 , c ) 30 , d ) 40 , e ) none of these"
)
MATHQA = PAIRS[-1]
CONTEXT = ("input", "context")


def read_instruction(conversion: Conversion) -> Converted:
    """Read text-only instructions or questions with answers, under the field names of the public datasets.

        {split}.jsonl, {split}.json (a list), or {split}-*.parquet; the split is not needed if there is only one file

    The calculator annotations of GSM8K (`<<48/2=24>>`) are removed, and `#### 72` becomes a sentence. The options of
    MathQA are added to the question, because the answers refer to their letters.
    """
    names = (
        f"{conversion.split}.jsonl",
        f"{conversion.split}.json",
        f"{conversion.split}-*.parquet",
        f"data/{conversion.split}-*.parquet",
    )
    files = find_files(conversion.folder, *names, "*.jsonl", "*.json", "*.parquet")
    if len(files) > 1 and files[0].suffix != ".parquet":
        raise UserError(
            f"{conversion.folder} has several files, give the split: {', '.join(p.stem for p in files[:5])}"
        )
    return convert_rows(numbered(_instruction_rows(files)), lambda row: _instruction_records(conversion, *row))


def _instruction_rows(files: list[Path]) -> Iterable[Row]:
    if files[0].suffix == ".jsonl":
        return jsonl_rows(files[0])
    if files[0].suffix == ".json":
        return list_rows(files[0])
    return parquet_rows(files, ())


def _instruction_records(conversion: Conversion, number: int, row: Json) -> Iterator[Record]:
    pair = next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)
    if pair is None:
        raise UserError(f"no question and answer: the row has {', '.join(map(str, row))}")
    context = next((row[name] for name in CONTEXT if row.get(name)), "")
    question = f"{row[pair[0]].strip()}\n\n{context.strip()}" if context else row[pair[0]]
    if pair == MATHQA:
        question = f"{question.strip()}\n{require_text(row['options'], 'list of options')}"
    yield converse(conversion, number, [(question, without_marks(row[pair[1]]))], category="text")


def without_marks(answer: str) -> str:
    answer = re.sub(r"<<[^<>]*>>", "", answer)
    return re.sub(r"\n#### (.+)\s*\Z", r"\nThe answer is \1.", answer)


MAX_CHARACTERS = 4_000
_PARAGRAPH = re.compile(r"[^\n]*\n|[^\n]+")
_SENTENCE = re.compile(r"[^.!?。！？；]*[.!?。！？；]+\s*|[^.!?。！？；]+")


def read_text_table(conversion: Conversion) -> Converted:
    """Read plain text in any language, one passage or article per row, as documents.

        {split}.parquet, {split}-*.parquet, {split}.jsonl
        text; optionally id, language, license (or licence), title, author

    The split is the name of a file: `enwiki` for enwiki.parquet. The language and license of a row take precedence
    over the given ones. Text longer than MAX_CHARACTERS is split between paragraphs, or else between sentences. A
    title becomes the first line.
    """
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
        text = require_text(values["text"], "text")
        title = " ".join(part.strip() for part in (values.get("title"), _author(values)) if part)
        pieces = split_text(f"{title}\n{text}" if title else text, MAX_CHARACTERS)
        name = f"{conversion.split}-{values.get('id') or number}"
        for at, piece in enumerate(pieces):
            yield document(own, name if len(pieces) == 1 else f"{name}-{at}", piece)

    return convert_rows(numbered(rows), make)


def _author(values: Json) -> str | None:
    """Return the author in parentheses, for a text with a title (a poem); other authors are left out."""
    return f"（{values['author']}）" if values.get("title") and values.get("author") else None


def document(conversion: Conversion, id: object, text: str) -> Record:
    return record(conversion, id, [Message(role="document", parts=(Part(text=text),))])


def split_text(text: str, limit: int) -> list[str]:
    """Split a text into pieces of at most `limit` characters, between paragraphs or sentences where possible."""
    pieces: list[str] = []
    for part in _parts(text, limit):
        if pieces and len(pieces[-1]) + len(part) <= limit:
            pieces[-1] += part
        else:
            pieces.append(part)
    return [piece.strip() for piece in pieces if piece.strip()]


def _parts(text: str, limit: int) -> Iterator[str]:
    """Yield paragraphs; the sentences of a paragraph over the limit; and fixed-size parts of such a sentence."""
    for paragraph in _PARAGRAPH.findall(text):
        for sentence in [paragraph] if len(paragraph) <= limit else _SENTENCE.findall(paragraph):
            yield from (sentence[start : start + limit] for start in range(0, len(sentence), limit))


ENTRIES_PER_PAGE = 24


def read_freedict(conversion: Conversion) -> Converted:
    """Read FreeDict's English-Chinese dictionary as documents of ENTRIES_PER_PAGE rows.

        freedict-en-zh.parquet   headword, pos, senses: list of {zh: list of text, definition}

    The dictionary was generated from Wiktionary, and some translations of verbs and function words are wrong, so only
    nouns are used.
    """
    files = find_files(conversion.folder, f"{conversion.split}.parquet", "freedict-en-zh.parquet")
    return convert_rows(
        _dictionary_pages(parquet_rows(files, ("headword", "senses"))), lambda page: _dictionary_page(conversion, *page)
    )


def _dictionary_pages(rows: Iterator[Row]) -> Iterator[Row]:
    """Group the nouns into pages. Rows that are errors are passed through."""
    number = 0
    while rows_of_page := list(islice(rows, ENTRIES_PER_PAGE)):
        failed = [(where, row) for where, row in rows_of_page if isinstance(row, UserError)]
        yield from failed
        entries = [row for _, row in rows_of_page if isinstance(row, dict) and row.get("pos") in ("n", "pn")]
        if entries:
            yield rows_of_page[0][0], (number, entries)
            number += 1


def _dictionary_page(conversion: Conversion, number: int, entries: list[Json]) -> Iterator[Record]:
    yield document(conversion, number, "\n".join(_dictionary_line(entry) for entry in entries))


def _dictionary_line(entry: Json) -> str:
    senses = []
    for sense in entry["senses"]:
        words = "，".join(sense["zh"])
        senses.append(f"{words} ({sense['definition']})" if sense.get("definition") else words)
    return f"{entry['headword']}: {'; '.join(senses)}"
