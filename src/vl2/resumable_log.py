"""An append-only JSON Lines file from which a stopped run is resumed: items that have a line in it are done.

Batch jobs, data jobs and evaluations write their results to such a file. `append` hands each line to the operating
system before it returns, so the line survives `kill -9`. The file is synced to disk after every `sync_every` lines, so
a power cut loses at most that many. An incomplete last line is removed when the file is opened again.
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
    """JSON lines with a key each. Only the keys and the byte offsets of their lines are kept in memory."""

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
        """Open or create the file. Raise UserError if another run has it open, or if it has lines of another kind.

        `key_of` returns the key of a decoded line and raises KeyError or TypeError if it is not a line of this log.
        `foreign` is the error message for such a line ("{number}" is its line number); with None the line is skipped.
        `surrogates` is the error handler of `str.encode` for lone surrogates; the default writes JSON's own escape, so
        the text is read back unchanged. `is_exclusive=False` takes no lock, for shared file systems without locks.
        """
        self.path = path
        self._key_of = key_of
        self._surrogates = surrogates
        self._sync_every = sync_every
        self._unsynced = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)  # unbuffered: a written line survives a killed process
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        self._reader = path.open("rb")
        try:
            if is_exclusive:
                _lock(self._file.fileno(), path)
            self._end = 0
            self._offsets = self._read_offsets(foreign)
        except BaseException:
            ResumableLog.close(self)
            raise

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    @property
    def keys(self) -> KeysView[str]:
        return self._offsets.keys()

    def line(self, key: str) -> Any:
        """Return the first line with this key, which must be in the log."""
        self._reader.seek(self._offsets[key])
        return json.loads(self._reader.readline())

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line, complete or not at all. Raise OSError if it cannot be written, as on a full disk."""
        data = json_line(line, self._surrogates)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)  # otherwise the next line would continue this incomplete one
            raise
        self._offsets.setdefault(self._key_of(line), self._end)
        self._end += len(data)
        self._unsynced += 1
        if self._unsynced >= self._sync_every:
            self.sync()

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
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

    def _read_offsets(self, foreign: str | None) -> dict[str, int]:
        """Return the byte offset of each key's first line, and cut off an incomplete last line."""
        offsets: dict[str, int] = {}
        for number, line in enumerate(self._reader, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(self._end)  # the process was killed while it wrote its last line
                break
            try:
                offsets.setdefault(self._key_of(json.loads(line)), self._end)
            except (ValueError, KeyError, TypeError):
                if foreign is not None:
                    raise UserError(f"{self.path} {foreign.format(number=number)}") from None
            self._end += len(line)
        return offsets


def json_line(line: Mapping[str, Any], surrogates: str = "backslashreplace") -> bytes:
    """Encode an object as one line of JSON in UTF-8."""
    return json.dumps(line, ensure_ascii=False).encode("utf-8", surrogates) + b"\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a finished log."""
    with path.open("rb") as file:
        yield from map(json.loads, file)


def clear(path: Path) -> None:
    """Empty the file. Raise UserError if a run has it open."""
    with path.open("ab") as file:
        _lock(file.fileno(), path)
        file.truncate(0)


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no flock, so there the user must not start two runs of one job
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{path} is in use by another run") from None
