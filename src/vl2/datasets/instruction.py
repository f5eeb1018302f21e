"""Text only: an instruction or question with its answer, under the names that the public sets use.

    {split}.jsonl, {split}.json (a list), or {split}-*.parquet; a folder with one file of these needs no split

GSM8K's answers lose their calculator marks (`<<48/2=24>>`), and `#### 72` becomes a sentence. MathQA's options stand
below its question: the answers name their letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vl2.data.raw_files import Json, Row, find_files, jsonl_rows, parquet_rows, read_list
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each, numbered
from vl2.datasets.question_answers import converse, filled
from vl2.errors import UserError

# The first pair that a row has is taken.
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


def read(conversion: Conversion) -> Converted:
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
    return each(numbered(_rows(files)), lambda row: _records(conversion, *row))


def _rows(files: list[Path]) -> Iterable[Row]:
    if files[0].suffix == ".jsonl":
        return jsonl_rows(files[0])
    if files[0].suffix == ".json":
        return read_list(files[0])
    return parquet_rows(files, ())


def _records(conversion: Conversion, number: int, row: Json) -> Iterator[Record]:
    pair = next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)
    if pair is None:
        raise UserError(f"no question and answer: the row has {', '.join(map(str, row))}")
    context = next((row[name] for name in CONTEXT if row.get(name)), "")
    question = f"{row[pair[0]].strip()}\n\n{context.strip()}" if context else row[pair[0]]
    if pair == MATHQA:
        question = f"{question.strip()}\n{filled(row['options'], 'list of options')}"
    yield converse(conversion, number, [(question, without_marks(row[pair[1]]))], category="text")


def without_marks(answer: str) -> str:
    answer = re.sub(r"<<[^<>]*>>", "", answer)
    return re.sub(r"\n#### (.+)\s*\Z", r"\nThe answer is \1.", answer)
