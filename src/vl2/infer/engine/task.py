"""One request in the engine: what is asked, how far it has come, and what comes out of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

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
