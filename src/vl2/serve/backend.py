"""The interface of a backend: it generates answers to encoded conversations, token by token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from vl2.infer.engine.request import Output
from vl2.infer.sampling import GenerateOptions
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.serve.telemetry import MetricValues


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """An encoded conversation with its options. An HTTP request makes one for each prompt and choice."""

    sample: Sample
    images: tuple[Image.Image, ...]  # the sample's whole images, if the backend needs them
    options: GenerateOptions
    adapter: str | None
    num_logprobs: int | None
    client: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of an answer in seconds after its request was accepted. None means not reached or not known."""

    started_s: float | None  # start of the prefill
    first_token_s: float | None
    whole_s: float | None = None  # last token
    num_reused: int = 0  # prompt tokens found in the prefix cache
    num_drafted: int = 0  # tokens decoded before it was known whether they belong to the answer
    num_accepted: int = 0  # those of them that do


class Answers(Protocol):
    """The answers to the requests of one `Backend.open`, while they are generated."""

    def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        """Yield (index of the request, output) until all answers have ended or `close` is called."""

    def close(self) -> None:
        """Cancel the answers that have not ended. It may be called more than once."""

    def timing(self, index: int) -> Timing: ...


class Backend(Protocol):
    """Generates answers to requests."""

    @property
    def processor(self) -> Processor: ...

    @property
    def needs_images(self) -> bool:
        """Tell whether the backend needs whole images, because it tiles them itself."""

    @property
    def calls_tools(self) -> bool:
        """Tell whether the backend can hold answers to the grammar of tool calls."""

    @property
    def max_context(self) -> int: ...

    @property
    def is_ready(self) -> bool: ...

    async def start(self) -> None:
        """Prepare for requests. The server calls this once, in its event loop."""

    async def stop(self) -> None:
        """End all active answers with an error and free all resources."""

    async def open(self, requests: Sequence[GenerationRequest]) -> Answers:
        """Accept all of the requests or none.

        Raise UserError if one can never be answered, and EngineFull if too many requests wait already.
        """

    def metric_values(self) -> MetricValues:
        """Return the current values of metrics, by their names in `vl2.serve.telemetry`."""
