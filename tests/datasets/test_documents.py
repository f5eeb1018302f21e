"""Text without a user: passages in several languages, a dictionary, and how long texts are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datasets.layouts import layout, read, said, write_parquet
from vl2.datasets.text_sets import MAX_CHARACTERS, split_text


def test_a_table_of_texts_becomes_documents_that_keep_language_and_licence(tmp_path: Path) -> None:
    records, problems = read("text_table", layout(tmp_path, "text_table"))
    assert [(said(r)[0], r.language, r.licence) for r in records] == [
        ("数学是研究数量的学科。\n它很古老。", "zh", "CC-BY-SA-3.0"),
        ("春曉 （孟浩然）\n春眠不覺曉，處處聞啼鳥。", "lzh", "check"),
        ("Iron is a metal.", "en", "check"),
    ]
    assert {message.role for r in records for message in r.messages} == {"document"}
    assert {r.category for r in records} == {"text"}
    assert [p.where for p in problems] == [f"train.jsonl line {n}" for n in (4, 5, 6)]
    records, _ = read("text_table", tmp_path / "text_table", language="de")
    assert [r.language for r in records] == ["zh", "lzh", "de"]


def test_long_texts_of_a_parquet_file_are_cut(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    paragraph = "A sentence of some words. " * 40
    write_parquet(tmp_path / "wiki.parquet", [{"id": "a", "text": f"{paragraph}\n" * 8}, {"id": "b", "text": "Short."}])
    records, _ = read("text_table", tmp_path, split="wiki")
    *long, short = [r.id for r in records]
    assert long == [f"text_table-wiki-a-{n}" for n in range(len(long))]
    assert len(long) > 1
    assert short == "text_table-wiki-b"
    assert all(len(said(r)[0]) <= MAX_CHARACTERS and said(r)[0].endswith(".") for r in records)


@given(st.text(alphabet="ab .。\n", min_size=1, max_size=200), st.integers(1, 40))
def test_cutting_loses_nothing_but_blanks(text: str, limit: int) -> None:
    pieces = split_text(text, limit)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(piece) <= limit for piece in pieces)


def test_nouns_of_a_dictionary_become_pages(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    senses = [{"zh": ["狗", "犬"], "definition": "an animal"}, {"zh": ["家伙"], "definition": None}]
    rows = [
        {"headword": "dog", "pos": "n", "senses": senses},
        {"headword": "set", "pos": "v", "senses": senses},
        *({"headword": f"word{n}", "pos": "n", "senses": senses[1:]} for n in range(30)),
    ]
    write_parquet(tmp_path / "freedict-en-zh.parquet", rows)
    records, problems = read("freedict", tmp_path)
    assert said(records[0])[0].splitlines()[:2] == ["dog: 狗，犬 (an animal); 家伙", "word0: 家伙"]
    assert sum(len(said(r)[0].splitlines()) for r in records) == 31
    assert not problems
