"""The ledger: what was put is there again, a torn last line is not, and one run at a time has it."""

from __future__ import annotations

import errno
import sys
from io import FileIO
from pathlib import Path

import pytest

from vl2.curate.jobs.asker import Ledger
from vl2.errors import UserError


def test_values_survive_closing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    with Ledger(path) as ledger:
        ledger.put("a", {"text": "eins\nzwei 三"})
        assert ledger.get("a") == {"text": "eins\nzwei 三"}
        ledger.put("b", None)
        assert ledger.get("c") is None
    with Ledger(path) as ledger:
        assert (len(ledger), "b" in ledger, "c" in ledger) == (2, True, False)
        assert ledger.get("a") == {"text": "eins\nzwei 三"}
        ledger.put("c", [1])
    assert path.read_text(encoding="utf-8").count("\n") == 3


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    with Ledger(path) as ledger:
        ledger.put("a", 1)
        whole = path.read_bytes()
        ledger.put("b", 2)
    assert 1 <= cut <= len(path.read_bytes()) - len(whole)
    path.write_bytes(path.read_bytes()[:-cut])
    with Ledger(path) as ledger:
        assert (ledger.get("a"), "b" in ledger) == (1, False)
        ledger.put("b", 3)
        assert ledger.get("b") == 3
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("content", ["a,b\n1,2\n", '{"id": 1}\n{"id": 2}\n', "not JSON\n{}\n"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a ledger of answers: line 1 cannot be read"):
        Ledger(path)
    assert path.read_text() == content


def test_a_full_disk_is_one_line_and_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    with Ledger(path) as ledger:
        ledger.put("a", 1)
        monkeypatch.setattr(ledger, "_file", FullDisk(ledger._file))
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
            ledger.put("b", 2)
    with Ledger(path) as ledger:
        assert (ledger.get("a"), len(ledger)) == (1, 1)


class FullDisk:
    """A file on a disk that has room for three more bytes."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._room = 3

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._file.write(data[: self._room])
        written, self._room = self._room, 0
        return written

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_two_runs_do_not_share_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.jsonl"), pytest.raises(UserError, match="in use by another run"):
        Ledger(tmp_path / "a.jsonl")
    Ledger(tmp_path / "a.jsonl").close()
