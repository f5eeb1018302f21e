"""An append-only file of JSON lines that is a run's memory: what is in it is done, and a new run goes on from there.

A line is with the operating system before `append` returns, so it survives `kill -9`; it reaches the disk at every
`sync_every`th, so a power cut loses at most those. A last line that was torn is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, KeysView, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vl2.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

SYNC_EVERY = 32


class ResumableLog:
    """Lines by key. In memory are the keys and where their lines begin; the lines stay in the file."""

    def __init__(
        self,
        path: Path,
        key_of: Callable[[Any], str],
        *,
        foreign: str | None,
        surrogates: str = "backslashreplace",
        sync_every: int = SYNC_EVERY,
        is_exclusive: bool = True,
    ) -> None:
        """Open or make the file. UserError if another run has it open, or if it is of another kind.

        `key_of` gets a line's values, and raises KeyError or TypeError for what is no line of this log. `foreign` then
        says what the file is not; with None such a line is passed over. `surrogates` is how a lone surrogate is
        encoded, as in `str.encode`: by default as JSON's own escape, which is read as the same text again. Without
        `is_exclusive` no lock is taken, for shared file systems that have none.
        """
        self.path = path
        self._key_of = key_of
        self._surrogates = surrogates
        self._sync_every = sync_every
        self._unsynced = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # what is written is with the system at once
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        self._reader = path.open("rb")
        try:
            if is_exclusive:
                _lock(self._file.fileno(), path)
            self._end = 0
            self._places = self._read_places(foreign)
        except BaseException:
            ResumableLog.close(self)
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    @property
    def keys(self) -> KeysView[str]:
        return self._places.keys()

    def line(self, key: str) -> Any:
        """Return the first line of a key that is in the log."""
        self._reader.seek(self._places[key])
        return json.loads(self._reader.readline())

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line whole, or nothing: OSError if the disk is full."""
        data = json_line(line, self._surrogates)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)  # a torn line in the middle would spoil the file
            raise
        self._places.setdefault(self._key_of(line), self._end)
        self._end += len(data)
        self._unsynced += 1
        if self._unsynced >= self._sync_every:
            self.sync()

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        self._file.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_places(self, foreign: str | None) -> dict[str, int]:
        places: dict[str, int] = {}
        for number, line in enumerate(self._reader, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(self._end)  # the process was killed while it wrote its last line
                break
            try:
                places.setdefault(self._key_of(json.loads(line)), self._end)
            except (ValueError, KeyError, TypeError):
                if foreign is not None:
                    raise UserError(f"{self.path} {foreign.format(number=number)}") from None
            self._end += len(line)
        return places


def json_line(line: Mapping[str, Any], surrogates: str = "backslashreplace") -> bytes:
    return json.dumps(line, ensure_ascii=False).encode("utf-8", surrogates) + b"\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a finished log."""
    with path.open("rb") as file:
        yield from map(json.loads, file)


def clear(path: Path) -> None:
    """Empty the file. UserError if a run has it open."""
    with path.open("ab") as file:
        _lock(file.fileno(), path)
        file.truncate(0)


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs of one job are then the person's own care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{path} is in use by another run") from None
