"""A least-recently-used cache with a limit in bytes. It may be shared between threads."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

from vl2.errors import UserError

V = TypeVar("V")


class ByteLRU(Generic[V]):
    """Values by key. The least recently used value is evicted first; a value above the limit is not stored."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most `max_bytes` bytes; 0 keeps nothing. Raise UserError for a negative number."""
        if max_bytes < 0:
            raise UserError(f"the bytes of a cache must be at least 0 (0 is off), got {max_bytes}")
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()  # the most recently used entry is last
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
        """Return the value of a key and mark it as most recently used, or return None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def make_room(self, nbytes: int) -> bool:
        """Evict values until `nbytes` more bytes fit. Return False, without any change, if they exceed the limit.

        Called before a value is created, this keeps peak memory within the limit.
        """
        if nbytes > self.max_bytes:
            return False
        with self._lock:
            self._drop_to(self.max_bytes - nbytes)
        return True

    def put(self, key: bytes, value: V, nbytes: int) -> None:
        """Store a value of `nbytes` bytes under a key, replacing an earlier one, and evict others until all fit."""
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
