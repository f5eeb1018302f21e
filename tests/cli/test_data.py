"""`vl2 data`: what each command prints, writes and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.sample_records import good_records, grounded
from vl2.cli.data import DATA_COMMANDS
from vl2.data.store import Located, read_records, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(good_records(6), f"{tmp_path}/set/a.jsonl")
    return tmp_path


@pytest.fixture
def bad(folder: Path) -> Path:
    values = {**grounded("twisted").to_dict(), "category": "pets"}
    with (folder / "set" / "a.jsonl").open("a") as file:
        file.write(f"{json.dumps(values)}\nno json\n")
    return folder


@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_the_help_of_each_has_examples(vl2, command):
    ran = vl2("data", command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Examples:\n  vl2 data {command} " in ran.out
    assert "default: )" not in ran.out


def test_the_group_alone_shows_its_help(vl2):
    ran = vl2("data")
    assert (ran.code, ran.out) == (0, vl2("data", "--help").out)
    assert all(f"\n  {command} " in ran.out for command in DATA_COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["vali"], 2, "unknown command vali (did you mean validate?); `vl2 data --help` shows what is allowed"),
        (["--foo"], 2, "unknown option --foo; `vl2 data --help` shows what is allowed"),
        (["stats", "--plot", "x"], 2, "unknown option --plot (did you mean --plots?); `vl2 data stats --help`"),
        (["preview", "x", "--count", "few"], 2, "Error parsing --count"),
        (["validate"], 1, "say where the records are"),
        (["stats", "none.jsonl"], 1, "no file or folder none.jsonl"),
        (["stats", "s3x://a/b.tar"], 1, "cannot reach s3x://a/b.tar"),
        (["validate", "x", "--shard-records", "5"], 1, "--shard-records is for --good"),
        (["validate", "x", "--good", "out.zip"], 1, "records are in files that end in .parquet, .tar, .jsonl, got"),
        (["preview", "x", "--out", "a.pdf"], 1, "--out must end in .html or .png"),
        (["preview", "x", "--tiling", "no"], 1, "tiling"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(vl2, arguments, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = vl2("data", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(f"vl2: {says}")
    assert ran.err.count("\n") == 1


def test_good_records_validate_in_silence(vl2, folder):
    ran = vl2("data", "validate", folder / "set")
    assert (ran.code, ran.out, ran.err) == (0, "", "vl2: 6 good, 0 bad\n")
    assert vl2("data", "validate", folder / "set", "-q").err == ""


def test_each_bad_record_is_a_line_and_the_good_ones_are_written_on(vl2, bad, tmp_path):
    ran = vl2("data", "validate", bad / "set", "--good", tmp_path / "g.tar", "--bad", tmp_path / "b.jsonl")
    assert ran.code == 1
    path = bad / "set" / "a.jsonl"
    first, second = ran.out.splitlines()
    assert first.startswith(f"{path}:7 [twisted] record: category must be one of caption, ")
    assert second == f"{path}:8 unreadable: not JSON: Expecting value at character 0"
    assert ran.err == "vl2: 6 good, 2 bad: 1 record, 1 unreadable\n"
    written = list(read_records(f"{tmp_path}/g.tar"))
    assert [item.record for item in written if isinstance(item, Located)] == good_records(6)
    problems = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [(p["row"], p["id"], p["kind"]) for p in problems] == [(6, "twisted", "record"), (7, None, "unreadable")]
    again = vl2("data", "validate", bad / "set", "--good", tmp_path / "g.tar")
    assert (again.code, again.out) == (1, "")
    assert "g.tar already exists" in again.err


def test_validate_as_json(vl2, bad):
    ran = vl2("data", "validate", bad / "set", "--json", "-q", "--fast")
    values = json.loads(ran.out)
    assert (ran.code, values["good"], values["bad"]) == (1, 6, 2)
    assert values["by_kind"] == {"record": 1, "unreadable": 1}
    assert values["problems"][0]["id"] == "twisted"


def test_a_warning_is_printed_and_is_no_failure(vl2, folder):
    ran = vl2("data", "validate", folder / "set", "--max-tokens", "50")
    assert ran.code == 0
    assert "long: " in ran.out.splitlines()[0]


def test_stats_are_a_table_or_json_with_plots_on_request(vl2, bad):
    ran = vl2("data", "stats", bad / "set")
    assert ran.code == 0
    assert "by category" in ran.out
    assert "tiles per image: " in ran.out
    assert "2 left out that cannot be read or encoded" in ran.err
    pytest.importorskip("matplotlib")
    ran = vl2("data", "stats", bad / "set", "--json", "--plots", bad / "plots", "-q")
    values = json.loads(ran.out)
    assert values["total"]["records"] == sum(g["records"] for g in values["by_source"].values()) == 6
    assert len(list((bad / "plots").glob("*.png"))) == 5
    assert ran.err == ""


@pytest.mark.parametrize("name", ["p.html", "p.png"])
def test_preview_writes_a_page_or_a_sheet(vl2, bad, name):
    ran = vl2("data", "preview", bad / "set", "--count", 4, "--out", bad / name)
    assert ran.code == 0
    assert ran.out.startswith("source  ")
    first_line, fill, *warning = ran.err.splitlines()
    assert first_line == f"vl2: 4 records in {bad / name}"
    assert re.fullmatch(r"vl2: packs of 4,096 tokens and at most 16 tiles would be \d+% full of records .*", fill)
    # The built-in model's tiles have 36 tokens, so that 16 of them leave most of a pack empty.
    assert len(warning) == 1
    assert "set stage.max_tiles_per_pack to about" in warning[0]
    first = (bad / name).read_bytes()
    assert first[:4] == (b"<!do" if name == "p.html" else b"\x89PNG")
    ran = vl2("data", "preview", bad / "set", "--count", 4, "--out", bad / name, "--json")
    values = json.loads(ran.out)
    assert (values["out"], values["shown"]) == (str(bad / name), 4)
    assert sum(each["records"] for each in values["diversity"]) == 6
    assert 0 < values["pack_fill"] < 0.8
    assert (bad / name).read_bytes() == first


def test_a_page_that_cannot_be_written_is_one_line(vl2, folder):
    ran = vl2("data", "preview", folder / "set", "--out", folder / "none" / "p.html")
    assert (ran.code, ran.err) == (1, f"vl2: cannot write {folder / 'none' / 'p.html'}: No such file or directory\n")


def test_importing_the_data_package_and_its_help_load_nothing_heavy():
    program = (
        "import sys\nimport vl2.data.store.entry, vl2.cli.data\nfrom vl2.cli.main import run\n"
        "run(['data', 'validate', '--help'])\n"
        "heavy = [n for n in ('torch', 'pyarrow', 'matplotlib', 'fsspec') if n in sys.modules]\n"
        "sys.exit(' '.join(heavy) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
