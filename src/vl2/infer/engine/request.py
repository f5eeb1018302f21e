"""One request in the engine, and the queue that takes clients in turn."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vl2.infer.prefill import Prefill
from vl2.infer.sampling import GenerateOptions
from vl2.infer.sequence import FinishReason, SequenceState
from vl2.model import Cache
from vl2.process.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Job:
    """One answer to make."""

    sample: Sample
    options: GenerateOptions
    client: str = ""  # whose it is: the clients take turns
    adapter: str | None = None  # one of the engine's, or the model as it is
    num_logprobs: int | None = None  # likeliest tokens reported beside each token; 0: the token alone; None: nothing

    def __post_init__(self) -> None:
        assert self.num_logprobs is None or self.num_logprobs >= 0


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before any sampling option."""

    chosen: float
    likeliest: Mapping[int, float]  # from the likeliest down


@dataclass(frozen=True, kw_only=True)
class Output:
    """A request got a token, or ended."""

    token_id: int | None = None  # None where it was cancelled or failed
    piece: str = ""  # new text, possibly empty
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # it failed, and nothing more comes

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(eq=False, kw_only=True)
class Task:
    """A job on its way. Times are those of `time.monotonic`."""

    job: Job
    max_new_tokens: int  # of its answer
    num_reserved: int  # positions of the cache that it may need
    added_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    num_reused: int = 0  # tokens of the prompt that an earlier request had read
    cache: Cache | None = None  # from the start to the end of the work
    prefill: Prefill | None = None  # until the prompt is prefilled
    sequence: SequenceState | None = None  # from then on


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
