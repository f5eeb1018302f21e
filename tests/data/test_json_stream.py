"""Large JSON files, entry by entry: the values of json.loads, in bounded memory, and errors in their place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.data import json_stream
from vl2.data.disk_index import DiskIndex
from vl2.data.json_stream import list_rows, object_rows
from vl2.errors import UserError

TEXTS = st.text(st.characters(codec="utf-8")) | st.sampled_from(["\ud800", "\\", '"]},', "\u2028"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def written(folder: Path, content: Any, **layout: Any) -> Path:
    path = folder / "set.json"
    path.write_text(json.dumps(content, **layout), encoding="utf-8")
    return path


def contents(rows: Any) -> list[Any]:
    return [row for _, row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@given(entries=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), indent=st.sampled_from([None, 1]))
@settings(max_examples=60)
def test_every_chunk_size_gives_the_values_of_json_loads(
    folder: Path, entries: list[Any], chunk: int, indent: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_CHARACTERS", chunk)
        path = written(folder, entries, indent=indent)
        assert contents(list_rows(path)) == entries
        keyed = {str(number): entry for number, entry in enumerate(entries)}
        assert contents(object_rows(written(folder, keyed, indent=indent))) == list(keyed.items())
        nested = {"before": [entries, {"list": 1}], "outer": {"x": entries, "list": entries}, "list": 2}
        assert contents(list_rows(written(folder, nested), "outer", "list")) == entries


def test_values_that_only_python_writes_are_kept(tmp_path: Path) -> None:
    (row,) = contents(list_rows(written(tmp_path, [[float("inf"), 10**30, 1.5]])))
    assert row == [float("inf"), 10**30, 1.5]
    assert isinstance(row[2], float)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(b"\xef\xbb\xbf [1, 2] \n")
    assert list(list_rows(path)) == [("set.json entry 0", 1), ("set.json entry 1", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it must hold a list, got nothing"),
        ('{"a": 1}', "it must hold a list, got dict"),
        ("oops", "it must hold a list, got 'o'"),
    ],
)
def test_another_layout_is_an_error_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        list_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"b": [1]}', "it must hold an object with a"),
        ('{"b": {"a": []}}', "it must hold an object with a"),
        ("[]", "it must hold an object with a"),
        ('{"a": {"b": 1}}', "it must hold a list, got dict"),
        ('{"b": nope, "a": []}', "cannot be read as JSON: Expecting value at character 6"),
    ],
)
def test_a_missing_list_is_an_error_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        list_rows(path, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[1, {"a": 2}', "expected ',' or ']' at character 12, got ''"),
        ('[1, {"a": 2} 3]', "expected ',' or ']' at character 13, got '3'"),
        ('[1, {"a": 2}, {"b" 3}]', "Expecting ':' delimiter at character 19"),
        ('[1, {"a": 2}, "cut', "Unterminated string starting at at character 14"),
        ('[1, {"a": 2}] x', "more text after the end, at character 14"),
    ],
)
def test_damage_is_an_error_in_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    *rows, (where, error) = list_rows(path)
    assert contents(rows) == [1, {"a": 2}]
    assert where == "set.json entry 2"
    assert isinstance(error, UserError)
    assert message in str(error)


def test_damage_early_in_a_file_is_found_without_reading_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", 64)
    monkeypatch.setattr(json_stream, "MAX_ENTRY_CHARACTERS", 500)
    path = tmp_path / "set.json"
    path.write_text('[1, {"a" 2}, ' + '"x", ' * 10_000 + "]")
    assert "Expecting ':' delimiter" in str(contents(list_rows(path))[-1])
    path.write_text('["' + "x" * 10_000 + '"]')
    assert "an entry has over 500 characters" in str(contents(list_rows(path))[-1])


PEAK = """
import sys
from pathlib import Path
from vl2.data.disk_index import DiskIndex
from vl2.data.json_stream import list_rows

def peak_mb():
    # Not ru_maxrss, which a new process takes over from its parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

before = peak_mb()
path = Path(sys.argv[1])
count = sum(1 for _ in list_rows(path))
index = DiskIndex(list_rows(path), "id")
print(count, index["id-7"]["value"][:1], peak_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_file_is_read_and_indexed_in_less_memory_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(60_000):
            file.write("," * bool(number) + json.dumps({"id": f"id-{number}", "value": f"{number} " * 300}))
        file.write("]")
    megabytes = path.stat().st_size / 2**20
    assert megabytes > 90
    made = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    count, value, grown = made.stdout.split()
    assert (count, value) == ("60000", "7")
    # 16 MB of SQLite's cache, a chunk of text and a batch of rows, whatever the file's size.
    assert float(grown) < 60


def test_an_index_on_disk_finds_rows_by_number_and_by_text(tmp_path: Path) -> None:
    rows = [("a", {"k": 1, "v": 1}), ("b", {"k": "1", "v": 2}), ("c", {"k": 1, "v": 3}), ("d", {"v": 4}), ("e", 5)]
    index = DiskIndex(iter(rows), "k")
    assert [row["v"] for row in index.rows(1)] == [1, 3]
    assert index["1"]["v"] == 2
    assert index[1]["v"] == 3
    assert index.rows(2) == []
    assert index.rows(10**30) == []
    with pytest.raises(KeyError):
        index["2"]
    assert index.without_key == ["d", "e"]


def test_an_index_is_never_made_of_half_a_file() -> None:
    with pytest.raises(UserError, match="b: damaged"):
        DiskIndex(iter([("a", {"k": 1}), ("b", UserError("damaged"))]), "k")
