"""The output of a job, which is also its memory: JSON lines, appended whole, in order, never twice.

A line is with the operating system before `append` returns, so it survives `kill -9`; it reaches the disk at every
`SYNC_EVERY`th. A last line that was torn is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vl2.errors import UserError

SYNC_EVERY = 32


class LineFile:
    """Lines by the name of their item."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. UserError if another run has it open, or it was not written by a job."""
        self.path = path
        self._unsynced = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        try:
            _lock(self._file.fileno(), path)
            self.ids = self._read_ids()
        except BaseException:
            self._file.close()
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line whole, or nothing: OSError if the disk is full."""
        data = _encoded(line) + b"\n"
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)  # a torn line in the middle would spoil the file
            raise
        self._end += len(data)
        self.ids.add(item_id(line))
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read_ids(self) -> set[str]:
        ids: set[str] = set()
        self._end = 0
        with self.path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                if not data.endswith(b"\n"):
                    self._file.truncate(self._end)  # the process was killed while it wrote its last line
                    break
                try:
                    ids.add(item_id(json.loads(data)))
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{self.path} is not the output of a job: line {number} has no id") from None
                self._end += len(data)
        return ids


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a finished output."""
    with path.open("rb") as file:
        yield from map(json.loads, file)


def clear(path: Path) -> None:
    """Empty the file. UserError if a run has it open."""
    with path.open("ab") as file:
        _lock(file.fileno(), path)
        file.truncate(0)


def item_id(line: Mapping[str, Any]) -> str:
    """Return the name of the item that a line answers."""
    name = line["custom_id"] if "custom_id" in line else line["id"]
    if not isinstance(name, str):
        raise TypeError(name)
    return name


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a file's name that is no UTF-8: in escapes it is read as the same name again
        return json.dumps(line).encode("ascii")


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs of one job are then the person's own care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{path} is in use by another run") from None
