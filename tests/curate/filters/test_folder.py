"""Filtering into a folder: what is left, how it goes on after a stop, settings as people write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.curate.filters.examples import record, scene
from vl2.cli.main import run
from vl2.curate.filters.filter_catalog import FILTERS, filter_settings, make_filters
from vl2.curate.filters.filter_folder import filter_folder
from vl2.data.record import StoredImage
from vl2.data.store import open_random, read_records, write_records
from vl2.errors import UserError

RECORDS = [
    record("a", scene(0)),
    record("tiny", StoredImage(data=b"never opened", width=4, height=4)),
    record("b", scene(1)),
    record("copy", scene(0).resize((120, 90))),
    record("broken", StoredImage(data=b"broken", width=99, height=99)),
    record("text", answer="A long answer about nothing at all."),
    record("text-copy", answer="a long answer, about nothing at all"),
    record("b-copy", scene(1)),
]
CHAIN = ["--filter", "tiny:min_side_px=8", "--filter", "duplicate_image", "--filter", "damaged",
         "--filter", "duplicate_text:threshold=0.9"]  # fmt: skip


@pytest.fixture
def raw(tmp_path: Path) -> str:
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(each.to_dict()) + "\n" for each in RECORDS) + "{damaged\n", encoding="utf-8")
    return str(path)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ledger(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "ledger").iterdir())
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_record_is_kept_or_dropped_with_a_reason(raw: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run(["data", "filter", raw, "--out", str(out), *CHAIN, "--part-records", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    dropped = {"tiny": 1, "duplicate_image": 3, "duplicate_text": 1, "read": 1}
    assert (report["seen"], report["kept"], report["dropped"]) == (9, 3, dropped)
    assert [each.id for each in open_random(str(out / "kept"))] == ["a", "b", "text"]
    lines = ledger(out)
    assert [line["id"] for line in lines] == [*(each.id for each in RECORDS), None]
    assert all(line["why"] for line in lines if not line["kept"])
    assert json.loads((out / "summary.json").read_text())["kept"] == 3


def test_a_stopped_run_goes_on_and_leaves_what_one_run_leaves(raw: str, tmp_path: Path, capsys) -> None:
    command = [*CHAIN, "--part-records", "2"]
    assert run(["data", "filter", raw, "--out", str(tmp_path / "whole"), *command]) == 0
    table = capsys.readouterr().err
    assert "duplicate_image           3 dropped" in table
    assert "kept                      3 of 9, in" in table
    # Stopped in the third part: its records were written, its ledger was not.
    found = list(read_records(raw))
    stopped = tmp_path / "stopped"
    assert run(["data", "filter", raw, "--out", str(stopped), *command, "-q"]) == 0
    for file in ("ledger/00002.ndjson", "ledger/00003.ndjson", "kept/00003.parquet", "summary.json"):
        (stopped / file).unlink(missing_ok=True)
    (stopped / "ledger" / "00004.ndjson").unlink()
    assert run(["data", "filter", raw, "--out", str(stopped), *command, "-q"]) == 0
    assert tree(stopped) == tree(tmp_path / "whole")
    # Nothing is opened again but by the filter that must remember it.
    settings = json.loads((stopped / "settings.json").read_text())["filters"]
    done = filter_folder(found, make_filters(settings["chain"]), stopped, settings, part_records=2)
    assert (done.parts_reused, done.kept) == (5, 3)


def test_another_run_in_the_same_folder_is_refused(raw: str, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert run(["data", "filter", raw, "--out", out, "--filter", "tiny", "-q"]) == 0
    assert run(["data", "filter", raw, "--out", out, "--filter", "damaged", "-q"]) == 1
    assert "holds a run with other settings" in capsys.readouterr().err
    write_records([record("new")], str(tmp_path / "other.jsonl"))
    assert run(["data", "filter", str(tmp_path / "other.jsonl"), "--out", out, "--filter", "tiny", "-q"]) == 1
    assert "is about other records" in capsys.readouterr().err


def test_half_a_character_is_dropped_as_what_cannot_be_read(tmp_path: Path, capsys) -> None:
    a, half, named, b = (
        each.to_dict()
        for each in (record("a"), record("half", answer="cut \ud83d here"), record("\ud83d"), record("b", answer="No."))
    )
    rows = [a, half, named, {**named, "category": "pets"}, b]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    out = tmp_path / "out"
    command = ["data", "filter", str(path), "--out", str(out), "--filter", "duplicate_text", "--part-records", "2"]
    for _ in range(2):
        assert run([*command, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["seen"], report["kept"], report["dropped"]) == (5, 2, {"read": 3})
    assert [each.id for each in open_random(str(out / "kept"))] == ["a", "b"]
    why = [line["why"] for line in ledger(out)]
    assert why[1] == f"{path}:2: message 1 has an unpaired surrogate (U+D83D)"
    assert why[2] == f"{path}:3: id has an unpaired surrogate (U+D83D)"


def test_a_recipe_says_the_same_as_flags(raw: str, tmp_path: Path) -> None:
    recipe = tmp_path / "filters.toml"
    recipe.write_text('[[filter]]\nname = "tiny"\nmin_side_px = 8\n[[filter]]\nname = "duplicate_image"\n'
                      'categories = ["caption", "vqa"]\n')  # fmt: skip
    assert run(["data", "filter", raw, "--out", str(tmp_path / "a"), "--recipe", str(recipe), "-q"]) == 0
    flags = ["--filter", "tiny:min_side_px=8", "--filter", "duplicate_image:categories=caption+vqa"]
    assert run(["data", "filter", raw, "--out", str(tmp_path / "b"), *flags, "-q"]) == 0
    assert ledger(tmp_path / "a") == ledger(tmp_path / "b")


def test_a_filter_of_some_categories_keeps_all_others() -> None:
    copies = [record("a", scene(0)), record("b", scene(0))]
    for categories, kept in ((["text"], 2), ([copies[0].category], 1)):
        for name in ("duplicate_image", "tiny"):
            settings: dict[str, object] = {"name": name, "categories": categories}
            if name == "tiny":
                settings["min_side_px"] = 5000
            [only] = make_filters([settings])
            assert sum(only(each).kept for each in copies) == (kept if name != "tiny" or kept == 2 else 0)


def test_every_filter_is_listed_with_its_settings(capsys) -> None:
    assert run(["data", "filter"]) == 0
    listed = capsys.readouterr().out
    for name in FILTERS:
        assert name in listed
    assert filter_settings("too_long") == ["limit", "unit", "categories"]
    assert filter_settings("duplicate_image") == ["max_distance", "same_question", "categories"]


def test_length_in_tokens_asks_for_the_model(raw: str, tmp_path: Path) -> None:
    lines = [record("short", answer="Hi."), record("long", answer="many words " * 400)]
    write_records(lines, str(tmp_path / "in.jsonl"))
    out = tmp_path / "out"
    command = ["data", "filter", str(tmp_path / "in.jsonl"), "--out", str(out), "--filter", "too_long:limit=100", "-q"]
    assert run(command) == 0
    assert [each.id for each in open_random(str(out / "kept"))] == ["short"]
    with pytest.raises(UserError, match="counting tokens needs a model"):
        make_filters([{"name": "too_long", "limit": 5}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["raw.jsonl"], "say where the records go: --out FOLDER"),
        (["raw.jsonl", "--out", "x"], "say which filters"),
        (["--out", "x", "--filter", "tiny"], "say where the records are"),
        (["raw.jsonl", "--out", "x", "--filter", "tinny"], "no filter is called 'tinny': did you mean tiny?"),
        (
            ["raw.jsonl", "--out", "x", "--filter", "tiny:min_side=3"],
            "no setting min_side: did you mean min_side_px",
        ),
        (
            ["raw.jsonl", "--out", "x", "--filter", "tiny:min_side_px=a"],
            "min_side_px of the filter tiny must be a ",
        ),
        (["raw.jsonl", "--out", "x", "--filter", "too_long"], "the filter too_long needs the setting limit"),
        (["raw.jsonl", "--out", "x", "--filter", "tiny:categories=pets"], "categories of tiny: 'pets' is not a"),
        (["raw.jsonl", "--out", "x", "--filter", "tiny", "--format", "csv"], "records are in files that end in"),
        (["raw.jsonl", "--out", "x", "--recipe", "none.toml"], "cannot read none.toml: No such file or directory"),
        (["raw.jsonl", "--out", "x", "--filter", "decontaminate:index=no.npz"], "no evaluation index at no.npz"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", "filter", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("x").exists()
