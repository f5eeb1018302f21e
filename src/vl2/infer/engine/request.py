"""The request types of the engine (job, output, task), and a fair queue that serves the clients in turn."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vl2.infer.prefill import Prefill
from vl2.infer.sampling import GenerateOptions
from vl2.infer.sequence import FinishReason, SequenceState
from vl2.infer.speculation import Speculation
from vl2.model import Cache
from vl2.process.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Job:
    """One answer to generate."""

    sample: Sample
    options: GenerateOptions
    client: str = ""  # the client that it belongs to; clients are served in turn
    adapter: str | None = None  # the name of one of the engine's adapters; None: the model without adapter
    num_logprobs: int | None = None  # likeliest tokens reported with each token; 0: its own only; None: no logprobs

    def __post_init__(self) -> None:
        assert self.num_logprobs is None or self.num_logprobs >= 0


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before any sampling option."""

    chosen: float
    likeliest: Mapping[int, float]  # by token id, the likeliest first


@dataclass(frozen=True, kw_only=True)
class Output:
    """One new token of a request, or its end."""

    token_id: int | None = None  # None if the request was canceled or failed
    piece: str = ""  # new text, possibly empty
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # the request failed; no further output follows

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(eq=False, kw_only=True)
class Task:
    """A job in the engine and its state. Times are in seconds, from `time.monotonic`."""

    job: Job
    max_new_tokens: int  # limit of the answer; may be below the option because of the context
    num_reserved: int  # cache positions that it may need
    added_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    num_reused: int = 0  # tokens of the prompt that came from the prefix cache
    cache: Cache | None = None  # its cache row, while the task is running
    prefill: Prefill | None = None  # set until the prompt is prefilled
    sequence: SequenceState | None = None  # set while the answer is decoded
    speculation: Speculation | None = None  # set with the first token if tokens are guessed


T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue that serves clients round-robin.

    A client with a thousand requests delays the first request of another client by at most one of them.
    """

    def __init__(self) -> None:
        self._of_client: OrderedDict[str, deque[T]] = OrderedDict()  # the first client is served next

    def __len__(self) -> int:
        return sum(map(len, self._of_client.values()))

    def __iter__(self) -> Iterator[T]:
        return (item for items in list(self._of_client.values()) for item in list(items))

    def add(self, client: str, item: T) -> None:
        self._of_client.setdefault(client, deque()).append(item)

    def peek(self) -> T | None:
        """Return the next item, or None. No other item overtakes it, however long it waits for memory."""
        return next((items[0] for items in self._of_client.values()), None)

    def pop(self) -> T:
        client, items = next(iter(self._of_client.items()))
        item = items.popleft()
        self._of_client.move_to_end(client)
        self._drop_if_empty(client)
        return item

    def remove(self, client: str, item: T) -> bool:
        """Remove an item of a client. Return False if it is not in the queue."""
        items = self._of_client.get(client)
        if items is None or item not in items:
            return False
        items.remove(item)
        self._drop_if_empty(client)
        return True

    def _drop_if_empty(self, client: str) -> None:
        if not self._of_client[client]:
            del self._of_client[client]
