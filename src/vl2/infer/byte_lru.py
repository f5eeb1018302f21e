"""A least-recently-used cache with a limit in bytes. Safe to share between threads."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

from vl2.errors import UserError

V = TypeVar("V")


class ByteLRU(Generic[V]):
    """Values by key. What was not used for longest goes first; a value above the bound is not taken in at all."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most `max_bytes`; with 0 nothing is kept."""
        if max_bytes < 0:
            raise UserError(f"the bytes of a cache must be at least 0 (0 is off), got {max_bytes}")
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()  # the one used last is at the end
        self._nbytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def get(self, key: bytes) -> V | None:
        """Return the value, from now on the one used last, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def make_room(self, nbytes: int) -> bool:
        """Drop others until a value of so many bytes fits, before it is made. False, and no change, if none does."""
        if nbytes > self.max_bytes:
            return False
        with self._lock:
            self._drop_to(self.max_bytes - nbytes)
        return True

    def put(self, key: bytes, value: V, nbytes: int) -> None:
        """Keep a value of so many bytes in place of what the key had, and drop others until all fit."""
        if nbytes > self.max_bytes:
            return
        with self._lock:
            replaced = self._entries.pop(key, None)
            self._nbytes += nbytes - (replaced[1] if replaced else 0)
            self._entries[key] = (value, nbytes)
            self._drop_to(self.max_bytes)

    def _drop_to(self, nbytes: int) -> None:
        while self._nbytes > nbytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self._nbytes -= freed

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._nbytes = 0
