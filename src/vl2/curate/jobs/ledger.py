"""The answers of an endpoint, one JSON line each, named by a hash of what was asked: nothing is asked twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.resumable_log import SYNC_EVERY, ResumableLog


class Ledger(ResumableLog):
    """Values by key, in lines of {"key", "value"}."""

    def __init__(self, path: Path, sync_every: int = SYNC_EVERY) -> None:
        """Open or make the file. UserError if another process has it open or it is no ledger."""
        foreign = "is not a ledger of answers: line {number} cannot be read"
        super().__init__(path, _key_of, foreign=foreign, surrogates="replace", sync_every=sync_every)

    def get(self, key: str) -> Any:
        """Return the value of a key, None if there is none."""
        return self.line(key)["value"] if key in self else None

    def put(self, key: str, value: Any) -> None:
        """Append a value, plain JSON. A key has one value for ever. UserError if the disk is full."""
        assert key not in self, f"{key} is in the ledger already"
        try:
            self.append({"key": key, "value": value})
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None

    def close(self) -> None:
        self.sync()
        super().close()


def _key_of(line: Any) -> str:
    key = line["key"]
    if "value" not in line or not isinstance(key, str):
        raise TypeError(line)
    return key
