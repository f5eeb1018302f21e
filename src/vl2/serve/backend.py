"""The interface of a backend, which answers encoded conversations token by token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from vl2.infer.engine.request import Output
from vl2.infer.sampling import GenerateOptions
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.serve.telemetry import Numbers


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """An encoded conversation with its options. An HTTP request has one for each prompt and choice."""

    sample: Sample
    images: tuple[Image.Image, ...]  # those of the sample, where the backend needs them
    options: GenerateOptions
    adapter: str | None
    num_logprobs: int | None
    client: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When things happened to an answer, in seconds after it was accepted; None for what did not."""

    started_s: float | None
    first_token_s: float | None
    whole_s: float | None = None  # to the last token
    num_reused: int = 0  # tokens of the prompt that were in the prefix cache


class Answers(Protocol):
    """The answers to some requests, under way together."""

    def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        """Yield what comes, with the index of its request; ends when all have ended or after `close`."""

    def close(self) -> None:
        """Stop working on what has not ended. May be called again."""

    def timing(self, index: int) -> Timing: ...


class Backend(Protocol):
    """Answers generation requests."""

    @property
    def processor(self) -> Processor: ...

    @property
    def needs_images(self) -> bool:
        """Whether it tiles pictures itself and so needs them whole."""

    @property
    def max_context(self) -> int: ...

    @property
    def is_ready(self) -> bool: ...

    async def start(self) -> None:
        """Get ready. Called once, in the event loop that the server runs in."""

    async def stop(self) -> None:
        """End what is under way with an error, and free everything."""

    async def open(self, requests: Sequence[GenerationRequest]) -> Answers:
        """Accept all requests or none. UserError for what can never be answered, EngineFull where too many wait."""

    def numbers(self) -> Numbers:
        """Return metrics by the names in `vl2.serve.telemetry`."""
