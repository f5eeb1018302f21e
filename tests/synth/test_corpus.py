"""Passages of large corpora, and the limit on pictures of the few built-in sentences and tables."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vl2.cli.main import run
from vl2.errors import UserError
from vl2.synth import corpus, words
from vl2.synth.builtin_inputs import MAX_BUILTIN, check_inputs
from vl2.synth.catalog import make_source
from vl2.synth.corpus import open_corpus
from vl2.synth.source import generate
from vl2.synth.tables import read_tables

LINES = [f"Passage number {n} speaks of things and of places." for n in range(60)]


def test_every_passage_of_a_folder_can_be_chosen(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "wiki.txt").write_text(
        "\n".join([*LINES[:30], " = Heading = ", "<|ref|> " * 9]), encoding="utf-8"
    )
    rows = [{"text": f"{LINES[n]}\n\n{LINES[n + 1]}"} for n in range(30, 60, 2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shard.parquet", row_group_size=4)
    opened, rng = open_corpus(str(tmp_path)), random.Random(0)
    assert {opened.choose(rng) for _ in range(3000)} == set(LINES)
    assert opened.choose(random.Random(7)) == opened.choose(random.Random(7))


def test_a_large_text_file_is_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    assert words.choose_passage(random.Random(0), "en", str(file)) in LINES
    monkeypatch.setattr(words, "WHOLE_FILE_BYTES", 10)
    monkeypatch.setattr(corpus, "TEXT_BYTES_AT_ONCE", 128)
    words._is_small_text.cache_clear()
    monkeypatch.setattr(words, "read_passages", lambda path: pytest.fail("read as a whole"))
    assert {words.choose_passage(random.Random(n), "en", str(file)) for n in range(600)} == set(LINES)
    words._is_small_text.cache_clear()


def test_a_corpus_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with pytest.raises(UserError, match="holds no passage"):
        open_corpus(str(tmp_path))
    pq.write_table(pa.Table.from_pylist([{"body": "x"}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column text, it has body"):
        open_corpus(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="cannot read the texts"):
        open_corpus(str(tmp_path))
    (tmp_path / "short.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(UserError, match="hardly any passage of 20 characters"):
        open_corpus(str(tmp_path / "short.txt")).choose(random.Random(0))


def test_tables_of_wikisql_are_read(tmp_path: Path) -> None:
    row = {
        "id": "1-1",
        "page_title": "Bridges",
        "header": ["Bridge", "Length (m)"],
        "rows": [["Old", 310], ["New", 42.5]],
    }
    bad = {"id": "1-2", "header": ["A"], "rows": []}
    (tmp_path / "dev.tables.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(bad)}\nnot JSON\n", encoding="utf-8")
    assert [(t.title, t.rows) for t in read_tables(str(tmp_path))] == [("Bridges", (("Old", "310"), ("New", "42.5")))]


def test_invented_tables_have_the_names_of_given_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "Village,People\n" + "".join(f"Ville-{n},{n * 31}\n" for n in range(12)), encoding="utf-8"
    )
    source = make_source("table_image", {"tables": str(tmp_path), "tasks": "csv"})
    answers = [record.messages[1].parts[0].text or "" for record in generate(source, 30)]
    assert all("Ville-" in answer for answer in answers)
    assert 0 < sum(answer.startswith("Name,Jan") for answer in answers) < 30


@pytest.mark.parametrize(
    ("name", "settings", "missing"),
    [
        ("text_image", {"languages": "en"}, "texts_en"),
        ("table_image", {}, "tables"),
        ("chart", {}, "tables"),
    ],
)
def test_many_pictures_of_built_in_inputs_are_refused(name: str, settings: dict[str, str], missing: str) -> None:
    source = make_source(name, settings)
    check_inputs(source, MAX_BUILTIN)
    check_inputs(source, MAX_BUILTIN + 1, allow=True)
    check_inputs(make_source(name, {**settings, missing: "given"}), 10**9)
    with pytest.raises(UserError, match=rf"would draw 1,001 pictures .* set {missing} to real ones"):
        check_inputs(source, MAX_BUILTIN + 1)


def test_the_command_line_stops_before_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "t.parquet")
    assert run(["data", "build", "table_image", out, "--count", "2000"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "built-in tables, more than 1,000: set tables to real ones, or give --allow-builtin-texts" in said
    recipe = tmp_path / "stage.toml"
    recipe.write_text('[[source]]\nname = "lines"\ndraw = "text_image"\ncount = 2000\n', encoding="utf-8")
    assert run(["data", "build", str(recipe), "--to", str(tmp_path / "stage")]) == 1
    assert "source lines would draw 2,000 pictures from the few built-in sentences" in capsys.readouterr().err
    assert not (tmp_path / "stage").exists()
    small = ["--count", "1", "--processes", "1", "-q", "--allow-builtin-texts"]
    assert run(["data", "build", "table_image", out, *small]) == 0
