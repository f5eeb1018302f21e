"""The way of every request: wait for a slot, open its pictures, write its tokens, hand it to the backend."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vl2.errors import UserError
from vl2.infer.sampling import GenerateOptions
from vl2.process.sample import Sample
from vl2.serve.backend import Answers, Ask, Backend
from vl2.serve.errors import ApiError
from vl2.serve.gate import Gate
from vl2.serve.images import ImageLoader
from vl2.serve.metrics import Metrics, Numbers
from vl2.serve.settings import ServerSettings
from vl2.serve.slots import FairSlots

Turns = Sequence[Mapping[str, Any]]

MAX_PREPARING = 16  # requests whose pictures are read or decoded at once; most of them wait for networks


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation or raw prompt that is ready to be answered."""

    sample: Sample
    images: tuple[Image.Image, ...]


class Service:
    """What the endpoints share."""

    def __init__(self, backend: Backend, settings: ServerSettings) -> None:
        self.backend, self.settings = backend, settings
        self.gate = Gate()
        self.metrics = Metrics()
        self.metrics.watch(self._numbers)
        self.started_at = int(time.time())
        # What cuts a connection off whose client reads nothing; the server that owns the connections puts it here.
        self.abort_connection: Callable[[tuple[str, int] | None], None] = lambda client: None
        self._slots = FairSlots(settings.max_prepared, max_waiting=settings.max_waiting)
        self._workers = ThreadPoolExecutor(MAX_PREPARING, thread_name_prefix="vl2-prepare")
        self._loader = ImageLoader(settings, backend.processor.image_options)

    def _numbers(self) -> Numbers:
        numbers = dict(self.backend.numbers())
        numbers["vl2_queue_length"] = numbers.get("vl2_queue_length", 0) + self._slots.num_waiting
        return numbers

    @property
    def model_names(self) -> tuple[str, ...]:
        return (self.settings.name, *self.settings.adapters)

    def adapter_of(self, model: str) -> str | None:
        """Return which adapter a model's name stands for, None for the base. ApiError for a name that is not served."""
        if model not in self.model_names:
            served = ", ".join(self.model_names)
            raise ApiError(404, f"the model {model!r} is not served; there is {served}", code="model_not_found",
                           param="model")  # fmt: skip
        return None if model == self.settings.name else model

    def max_tokens(self, *wanted: int | None) -> int:
        """Return the first bound that was given."""
        return next((count for count in wanted if count is not None), self.settings.limits.default_max_tokens)

    @contextlib.asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """Hold a place among the requests whose pictures are in memory, until the answer is complete."""
        await self._slots.acquire(client)
        try:
            yield
        finally:
            self._slots.release()

    async def prepare_chat(self, turns: Turns) -> Prompt:
        """Open the pictures of a conversation and write its tokens."""
        limits = self.settings.limits
        if len(turns) > limits.max_messages:
            raise UserError(f"a conversation may have at most {limits.max_messages} messages, got {len(turns)}")
        # Before anything is fetched or opened. The outer blanks of a message do not count.
        self.backend.processor.check_length(text.strip() for text in _texts(turns))
        sources = [part["image"] for part in _image_parts(turns)]

        def prepare() -> Prompt:
            read = self._loader.read_all(sources)
            with self._loader.room:
                images = self._loader.decode_all(read)
                # Kept apart from what clients write: no text of theirs can name a picture that was not opened here.
                opened = iter(images)
                placed = [_with_images(turn, lambda: next(opened)) for turn in turns]
                return self._prompt(self.backend.processor.encode(placed), images)

        return await self._in_thread(prepare)

    async def prepare_prompt(self, prompt: str | Sequence[int], sources: Sequence[str]) -> Prompt:
        """Open the pictures of a raw prompt, one for each `<image>` in it, and write its tokens.

        Token ids are read as they are, without a bos of their own.
        """
        if isinstance(prompt, str):
            self.backend.processor.check_length([prompt])

        def prepare() -> Prompt:
            read = self._loader.read_all(sources)
            with self._loader.room:
                images = self._loader.decode_all(read)
                processor = self.backend.processor
                if isinstance(prompt, str):
                    return self._prompt(processor.encode_prompt(prompt, images), images)
                return self._prompt(processor.encode_ids(prompt, images), images)

        return await self._in_thread(prepare)

    def _prompt(self, sample: Sample, images: Sequence[Image.Image]) -> Prompt:
        return Prompt(sample=sample, images=tuple(images) if self.backend.needs_images else ())

    async def _in_thread(self, prepare: Callable[[], Prompt]) -> Prompt:
        return await asyncio.get_running_loop().run_in_executor(self._workers, prepare)

    async def open(
        self,
        prompts: Sequence[Prompt],
        options: Sequence[GenerateOptions],
        *,
        adapter: str | None,
        num_logprobs: int | None,
        client: str,
    ) -> Answers:
        """Hand over one ask for each prompt and its options."""
        asks = [
            Ask(
                sample=prompt.sample,
                images=prompt.images,
                options=made,
                adapter=adapter,
                num_logprobs=num_logprobs,
                client=client,
            )
            for prompt, made in zip(prompts, options, strict=True)
        ]
        return await self.backend.open(asks)

    def check_choices(self, num_choices: int) -> None:
        most = self.settings.limits.max_choices
        if num_choices > most:
            raise ApiError(400, f"at most {most} answers can be had at once, got {num_choices}", param="n")


def _texts(turns: Turns) -> list[str]:
    contents = [turn["content"] for turn in turns]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [
        *(content for content in contents if isinstance(content, str)),
        *(part["text"] for part in parts if part["type"] == "text"),
    ]


def _image_parts(turns: Turns) -> list[Mapping[str, Any]]:
    return [
        part
        for turn in turns
        if isinstance(turn["content"], list)
        for part in turn["content"]
        if part["type"] == "image"
    ]


def _with_images(turn: Mapping[str, Any], next_image: Callable[[], Image.Image]) -> Mapping[str, Any]:
    if not isinstance(turn["content"], list):
        return turn
    parts = [{"type": "image", "image": next_image()} if part["type"] == "image" else part for part in turn["content"]]
    return {**turn, "content": parts}
