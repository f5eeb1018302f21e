"""`vl2 data build` and `vl2 data convert`: from nothing or a public layout to records that validate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl2.cli.main import run
from vl2.data.store import open_random
from vl2.synth.catalog import SOURCES

# Each of these runs a program or draws slowly; tests/synth covers them.
SLOW = ("plot_code", "chart", "web_page")


@pytest.mark.parametrize("source", [name for name in SOURCES if name not in SLOW])
def test_every_source_is_built_by_one_command_and_validates(source: str, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "made.parquet")
    assert run(["data", "build", source, out, "--count", "3", "--processes", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    # With some of a machine's fonts, words can be too wide for a picture, which is then dropped and counted.
    assert report["made"] >= 1
    assert report["made"] + sum(report["dropped"].values()) == 3
    assert len(open_random(out)) == report["made"]
    assert run(["data", "validate", out]) == 0, capsys.readouterr().out


def test_the_same_seed_builds_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert run(["data", "build", "receipt", str(tmp_path / f"{name}.tar"), "--count", "2", "--seed", seed,
                    "--processes", "1", "-q"]) == 0  # fmt: skip
    a, b, c = ((tmp_path / f"{name}.tar").read_bytes() for name in "abc")
    assert a == b != c


def test_settings_reach_the_source(tmp_path: Path) -> None:
    out = str(tmp_path / "made.jsonl")
    assert run(["data", "build", "scene", out, "--count", "4", "--processes", "1", "--set", "tasks=count", "-q"]) == 0
    assert len(open_random(out)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["receipts", "x.tar"], "a synthetic source is one of text_image, "),
        (["receipt"], "say where to write the records"),
        (["receipt", "x.docx"], "x.docx"),
        (["receipt", "x.tar", "--set", "task=total"], "receipt has no setting task: did you mean tasks?"),
        (["receipt", "x.tar", "--set", "tasks"], "--set takes NAME=VALUE, got 'tasks'"),
        (["receipt", "x.tar", "--set", "tasks=fly"], "tasks of receipt are "),
        (["receipt", "x.tar", "--count", "-1"], "count must be at least 0"),
        (["receipt", "x.tar", "--set", "languages=fr"], "languages of receipt are en and zh, or one of them, got fr"),
        (["scene", "x.tar", "--set", "max_objects=0"], "max_objects of scene must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", "build", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sources_and_sets_are_listed(capsys) -> None:
    assert run(["data", "build"]) == 0
    assert "receipt" in capsys.readouterr().out
    assert run(["data", "convert"]) == 0
    assert "nlvr" in capsys.readouterr().out


def test_a_public_layout_is_converted(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    rows = [
        {"id": "1", "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "Red."}]},
        {"id": "2", "image": "absent.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "?"}]},
    ]  # fmt: skip
    (folder / "llava.json").write_text(json.dumps(rows))
    out = str(tmp_path / "llava.parquet")
    assert run(["data", "convert", "llava", str(folder), out]) == 0, capsys.readouterr().err
    assert len(open_random(out)) == 1
    said = capsys.readouterr().err
    assert "absent.png" in said
    assert f"vl2: 1 records in {out}\n" in said
    assert run(["data", "convert", "lava", str(folder), out]) == 1
    assert "llava" in capsys.readouterr().err


def test_rows_that_cannot_be_stored_are_lines_and_the_rest_is_converted(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "llava"
    (folder / "c:").mkdir(parents=True)
    from PIL import Image

    for name in ("a.png", "c:/b.png"):
        Image.new("RGB", (40, 30), "red").save(folder / name)
    asked = [("a.png", "What?"), ("c:/b.png", "What?"), ("a.png", "cut \ud83d here"), ("a.png", "And now?")]
    rows = [
        {"id": str(number), "image": image, "conversations": [
            {"from": "human", "value": text}, {"from": "gpt", "value": "Red."}]}
        for number, (image, text) in enumerate(asked)
    ]  # fmt: skip
    (folder / "llava.json").write_text(json.dumps(rows))
    out = str(tmp_path / "llava.parquet")
    assert run(["data", "convert", "llava", str(folder), out]) == 0, capsys.readouterr().err
    assert [each.id for each in open_random(out)] == ["llava-0-0", "llava-3-3"]
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("vl2: record 'llava-1-1': image 0: path must be relative")
    assert second == "vl2: llava.json entry 2: message 0 has an unpaired surrogate (U+D83D)"
    assert last == f"vl2: 2 records in {out}"


@pytest.mark.parametrize("more", [[], ["--shard-records", "2"]])
def test_a_set_that_gives_nothing_is_refused_and_leaves_nothing(more: list[str], tmp_path: Path, capsys) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    (folder / "llava.json").write_text("[]")
    assert run(["data", "convert", "llava", str(folder), str(tmp_path / "out.parquet"), *more]) == 1
    assert capsys.readouterr().err == f"vl2: {folder} gave no record of the split train: nothing is written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["llava"]
