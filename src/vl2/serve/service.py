"""What every request goes through: admission, its pictures, its tokens, the backend.

Requests without pictures have their own limits and threads, so they never wait for pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from vl2.errors import UserError
from vl2.infer.engine.engine import EngineStopped
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import Turn, arrange
from vl2.process.messages import released_prompt
from vl2.process.sample import Sample
from vl2.serve.admission import DrainState, FairSemaphore
from vl2.serve.api_errors import ApiError
from vl2.serve.backend import Answers, Backend, GenerationRequest
from vl2.serve.decoders import Decoders
from vl2.serve.images import ImageLoader, LoadedImages
from vl2.serve.memory import keep_small
from vl2.serve.settings import ServerSettings
from vl2.serve.telemetry import Metrics, Numbers

T = TypeVar("T")

NUM_TOKENIZING = 4  # requests whose tokens are written at once


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation or raw prompt that is ready to be answered."""

    sample: Sample
    images: tuple[Image.Image, ...]


class Admission:
    """What a request holds until its answer is complete: a permit, and memory for its pictures."""

    def __init__(self, service: Service, client: str, resources: contextlib.AsyncExitStack) -> None:
        self._service, self._resources = service, resources
        self.client = client

    async def wait(self, *, has_images: bool) -> None:
        """Wait for a permit. Call it once per request: waiting for more while holding one could deadlock."""
        semaphore = self._service.image_semaphore if has_images else self._service.text_semaphore
        await self._resources.enter_async_context(semaphore.hold(self.client))

    async def reserve_memory(self, num_bytes: int) -> None:
        """Wait until so much memory is free for the pictures. Call it once per request too."""
        await self._resources.enter_async_context(self._service.kept_bytes.hold(self.client, num_bytes))


class Service:
    """What the endpoints share."""

    def __init__(self, backend: Backend, settings: ServerSettings) -> None:
        self.backend, self.settings = backend, settings
        self.drain_state = DrainState()
        self.metrics = Metrics()
        self.metrics.watch(self._numbers)
        self.started_at = int(time.time())
        # Drops the connection of a client that reads nothing. Set by the server, which owns the connections.
        self.abort_connection: Callable[[tuple[str, int] | None], None] = lambda client: None
        self.text_semaphore = FairSemaphore(settings.max_prepared, max_waiting=settings.max_waiting)
        self.image_semaphore = FairSemaphore(settings.max_prepared, max_waiting=settings.max_waiting)
        self.kept_bytes = FairSemaphore(settings.max_kept_bytes)
        self._threads = ThreadPoolExecutor(NUM_TOKENIZING, thread_name_prefix="vl2-tokenize")
        self._loader = ImageLoader(settings, backend.processor, needs_whole=backend.needs_images)
        self._preparing: set[asyncio.Task[Any]] = set()
        self._is_cut_short = False
        self._memory: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await asyncio.gather(self.decoders.start(), self.backend.start())
        self._memory = asyncio.create_task(keep_small(lambda: self.drain_state.num_under_way > 0))

    async def stop(self) -> None:
        """End what is under way, and free everything."""
        if self._memory is not None:
            self._memory.cancel()
        self.decoders.stop()
        self._loader.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.backend.stop()

    async def cut_short(self) -> None:
        """End every request that is under way with an error that says why."""
        self._is_cut_short = True
        for task in self._preparing:
            task.cancel()
        await self.backend.stop()

    @property
    def decoders(self) -> Decoders:
        return self._loader.decoders

    def _numbers(self) -> Numbers:
        numbers = dict(self.backend.numbers())
        num_waiting = self.text_semaphore.num_waiting + self.image_semaphore.num_waiting
        numbers["vl2_queue_length"] = numbers.get("vl2_queue_length", 0) + num_waiting
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
    async def admission(self, client: str) -> AsyncIterator[Admission]:
        """Give a request an Admission, and free what it holds in the end."""
        async with contextlib.AsyncExitStack() as resources:
            yield Admission(self, client, resources)

    async def prepare_chat(self, turns: Sequence[Turn], admission: Admission) -> Prompt:
        """Open the pictures of a conversation and write its tokens."""
        limits = self.settings.limits
        if len(turns) > limits.max_messages:
            raise UserError(f"a conversation may have at most {limits.max_messages} messages, got {len(turns)}")
        # Before anything is fetched or opened. Outer blanks do not count.
        self.backend.processor.check_length(p.strip() for turn in turns for p in turn.pieces if isinstance(p, str))

        async def prepare() -> Prompt:
            await admission.wait(has_images=any(turn.images for turn in turns))
            # Clients name the sources, so only the loader may open them.
            arranged = await self._in_thread(lambda: arrange(turns))
            loaded = await self._load([turn.images for turn in arranged], admission)
            encode = self.backend.processor.encode
            sample = await self._in_thread(lambda: encode(arranged, prepared=loaded.prepared if loaded else None))
            return Prompt(sample=sample, images=loaded.whole if loaded else ())

        return await self._unless_cut_short(prepare())

    async def prepare_prompts(
        self, prompts: Sequence[str | Sequence[int]], sources: Sequence[str], admission: Admission
    ) -> list[Prompt]:
        """Open the pictures of raw prompts, one for each `<image>` in each of them, and write their tokens.

        The prompts have the same pictures, which are opened once. Token ids are read as they are, without a bos of
        their own.
        """
        processor = self.backend.processor
        for prompt in prompts:  # each prompt has the whole context
            if isinstance(prompt, str):
                processor.check_length([prompt])

        def check_places() -> None:
            for prompt in prompts:
                if isinstance(prompt, str):
                    released_prompt(prompt, sources)
                else:
                    processor.image_places(prompt, sources)

        async def prepare() -> list[Prompt]:
            await admission.wait(has_images=bool(sources))
            await self._in_thread(check_places)  # before anything is fetched: as many places as pictures
            loaded = await self._load([sources], admission)
            images = loaded.prepared if loaded else None

            def encode(prompt: str | Sequence[int]) -> Sample:
                if isinstance(prompt, str):
                    return processor.encode_prompt(prompt, sources, prepared=images)
                return processor.encode_ids(prompt, sources, prepared=images)

            samples = await self._in_thread(lambda: [encode(prompt) for prompt in prompts])
            return [Prompt(sample=sample, images=loaded.whole if loaded else ()) for sample in samples]

        return await self._unless_cut_short(prepare())

    async def _load(self, messages: Sequence[Sequence[object]], admission: Admission) -> LoadedImages | None:
        sources = [[source for source in message if isinstance(source, str)] for message in messages]
        return await self._loader.load(sources, admission.client, admission) if any(sources) else None

    async def _unless_cut_short(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._preparing.add(task)
        try:
            if self._is_cut_short:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            if self._is_cut_short:
                raise EngineStopped("the server stopped before the answer was complete") from None
            raise
        finally:
            self._preparing.discard(task)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def open(
        self,
        prompts: Sequence[Prompt],
        options: Sequence[GenerateOptions],
        *,
        adapter: str | None,
        num_logprobs: int | None,
        client: str,
    ) -> Answers:
        """Hand the backend a request for each prompt and its options."""
        requests = [
            GenerationRequest(
                sample=prompt.sample,
                images=prompt.images,
                options=made,
                adapter=adapter,
                num_logprobs=num_logprobs,
                client=client,
            )
            for prompt, made in zip(prompts, options, strict=True)
        ]
        return await self.backend.open(requests)

    def check_choices(self, num_choices: int) -> None:
        most = self.settings.limits.max_choices
        if num_choices > most:
            raise ApiError(400, f"at most {most} answers can be had at once, got {num_choices}", param="n")
