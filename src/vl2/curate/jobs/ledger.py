"""An append-only file of answers, one JSON line each, named by a hash of what was asked: nothing is asked twice.

A line is written whole before `put` returns, so it survives `kill -9`; it reaches the disk at every `sync_every`th, so
a power cut loses at most those. A torn last line is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from vl2.errors import UserError


class Ledger:
    """Values by key. In memory are the keys and where their lines start; the values stay in the file."""

    def __init__(self, path: Path, sync_every: int = 32) -> None:
        """Open or make the file. UserError if another process has it open or it is no ledger."""
        self.path = path
        self._sync_every = sync_every
        self._unsynced = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)  # what is written is with the system at once
        self._reader = path.open("rb")
        try:
            _lock(self._file, path)
            self._end = 0
            self._places = self._read_places()
        except BaseException:
            self._close_files()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Any:
        """Return the value of a key, None if there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        self._reader.seek(place)
        return json.loads(self._reader.readline())["value"]

    def put(self, key: str, value: Any) -> None:
        """Append a value, plain JSON. A key has one value for ever. UserError if the disk is full."""
        assert key not in self._places, f"{key} is in the ledger already"
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._append(line)
        self._places[key] = self._end
        self._end += len(line)
        self._unsynced += 1
        if self._unsynced >= self._sync_every:
            self.sync()

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        self.sync()
        self._close_files()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close_files(self) -> None:
        self._file.close()
        self._reader.close()

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._end)  # a torn line in the middle would spoil the file
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None

    def _read_places(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for number, line in enumerate(self._reader, start=1):
            key = _key_of(line)
            if key is None:
                if line.endswith(b"\n"):
                    raise UserError(f"{self.path} is not a ledger of answers: line {number} cannot be read")
                self._file.truncate(self._end)  # the process was killed while it wrote its last line
                break
            places.setdefault(key, self._end)
            self._end += len(line)
        return places


def _key_of(line: bytes) -> str | None:
    """Return the key of a whole line, None for a torn or foreign one."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    key = entry.get("key") if isinstance(entry, dict) and "value" in entry else None
    return key if isinstance(key, str) else None


def _lock(file: FileIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs of one job are then the person's own care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{path} is in use by another run") from None
