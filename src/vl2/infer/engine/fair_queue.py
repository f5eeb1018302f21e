"""Who is next: each client's requests in their order, and the clients in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A client with a thousand requests delays another's first by one of its own at most."""

    def __init__(self) -> None:
        self._of_client: OrderedDict[str, deque[T]] = OrderedDict()  # the first is next

    def __len__(self) -> int:
        return sum(map(len, self._of_client.values()))

    def __iter__(self) -> Iterator[T]:
        return (item for items in list(self._of_client.values()) for item in list(items))

    def add(self, client: str, item: T) -> None:
        self._of_client.setdefault(client, deque()).append(item)

    def peek(self) -> T | None:
        """Return who is next. Nobody overtakes it, however long it waits for room."""
        return next((items[0] for items in self._of_client.values()), None)

    def pop(self) -> T:
        client, items = next(iter(self._of_client.items()))
        item = items.popleft()
        self._of_client.move_to_end(client)
        self._drop_if_empty(client)
        return item

    def remove(self, client: str, item: T) -> bool:
        """Take an item out of its place; False if it is not here."""
        items = self._of_client.get(client)
        if items is None or item not in items:
            return False
        items.remove(item)
        self._drop_if_empty(client)
        return True

    def _drop_if_empty(self, client: str) -> None:
        if not self._of_client[client]:
            del self._of_client[client]
