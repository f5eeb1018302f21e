"""`vl2 data build` and `vl2 data convert`: from nothing or a public layout to records that validate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl2.cli.main import run
from vl2.data.construct.catalog import SOURCES
from vl2.data.store import open_random

# Each of these runs a program or draws slowly; tests/data/construct covers them.
SLOW = ("plot_code", "chart", "web_page")


@pytest.mark.parametrize("source", [name for name in SOURCES if name not in SLOW])
def test_every_source_is_built_by_one_command_and_validates(source: str, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "made.parquet")
    assert run(["data", "build", source, out, "--count", "3", "--processes", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["made"] == 3
    assert len(open_random(out)) == 3
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
    assert "absent.png" in capsys.readouterr().err
    assert run(["data", "convert", "lava", str(folder), out]) == 1
    assert "llava" in capsys.readouterr().err
