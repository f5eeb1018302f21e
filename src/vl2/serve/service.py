"""The steps of every request: admission, loading its images, tokenizing, and handing it to the backend.

Requests without images have their own limits and threads, so they never wait for images of other requests.
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
from vl2.infer.constraint import Constraint, JsonSchema
from vl2.infer.constraint_tools import ToolCalls
from vl2.infer.engine.engine import EngineStopped
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import Turn, arrange
from vl2.process.messages import released_prompt
from vl2.process.sample import Sample
from vl2.serve.admission import DrainState, FairSemaphore
from vl2.serve.answer_log import ServerLog
from vl2.serve.api_errors import ApiError
from vl2.serve.backend import Answers, Backend, GenerationRequest
from vl2.serve.decoders import Decoders
from vl2.serve.grammars import GrammarChecker
from vl2.serve.images import ImageLoader, LoadedImages
from vl2.serve.memory import trim_memory
from vl2.serve.settings import ServerSettings
from vl2.serve.telemetry import Metrics, MetricValues

T = TypeVar("T")

NUM_TOKENIZING = 4  # requests that are tokenized at the same time


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """An encoded conversation or raw prompt."""

    sample: Sample
    images: tuple[Image.Image, ...]


class Admission:
    """The resources that a request holds until its answer is complete: a permit, and memory for its images."""

    def __init__(self, service: Service, client: str, resources: contextlib.AsyncExitStack) -> None:
        self._service, self._resources = service, resources
        self.client = client
        self._is_admitted = False

    async def wait(self, *, has_images: bool) -> None:
        """Wait for a permit. Later calls return at once, because waiting for a second permit could deadlock."""
        if self._is_admitted:
            return
        semaphore = self._service.image_semaphore if has_images else self._service.text_semaphore
        await self._resources.enter_async_context(semaphore.hold(self.client))
        self._is_admitted = True

    async def reserve_memory(self, num_bytes: int) -> None:
        """Wait until `num_bytes` are free for the request's images, and reserve them. Call this once per request."""
        await self._resources.enter_async_context(self._service.kept_bytes.hold(self.client, num_bytes))


class Service:
    """The state and the functions that all endpoints share."""

    def __init__(self, backend: Backend, settings: ServerSettings, answer_log: ServerLog | None = None) -> None:
        self.backend, self.settings, self.answer_log = backend, settings, answer_log
        self.drain_state = DrainState()
        self.metrics = Metrics()
        self.metrics.watch(self._metric_values)
        self.started_at = int(time.time())
        # Aborts the connection of a client that does not read. The server sets it, because it owns the connections.
        self.abort_connection: Callable[[tuple[str, int] | None], None] = lambda client: None
        self.text_semaphore = FairSemaphore(settings.max_prepared, max_waiting=settings.max_waiting)
        self.image_semaphore = FairSemaphore(settings.max_prepared, max_waiting=settings.max_waiting)
        self.kept_bytes = FairSemaphore(settings.max_kept_bytes)
        self._threads = ThreadPoolExecutor(NUM_TOKENIZING, thread_name_prefix="vl2-tokenize")
        self._loader = ImageLoader(settings, backend.processor, needs_whole=backend.needs_images)
        self._grammars = GrammarChecker(self.decoders)
        self._preparing: set[asyncio.Task[Any]] = set()
        self._is_aborted = False
        self._memory: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await asyncio.gather(self.decoders.start(), self.backend.start())
        self._memory = asyncio.create_task(trim_memory(lambda: self.drain_state.num_active > 0))

    async def stop(self) -> None:
        """End all active requests and free all resources."""
        if self._memory is not None:
            self._memory.cancel()
        self.decoders.stop()
        self._loader.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.backend.stop()
        if self.answer_log is not None:
            await asyncio.to_thread(self.answer_log.close)

    async def abort_requests(self) -> None:
        """End every active request with the error that the server is stopping."""
        self._is_aborted = True
        for task in self._preparing:
            task.cancel()
        await self.backend.stop()

    @property
    def decoders(self) -> Decoders:
        return self._loader.decoders

    def _metric_values(self) -> MetricValues:
        numbers = dict(self.backend.metric_values())
        num_waiting = self.text_semaphore.num_waiting + self.image_semaphore.num_waiting
        numbers["vl2_queue_length"] = numbers.get("vl2_queue_length", 0) + num_waiting
        return numbers

    @property
    def model_names(self) -> tuple[str, ...]:
        return (self.settings.name, *self.settings.adapters)

    def adapter_of(self, model: str) -> str | None:
        """Return the adapter that a model name selects, None for the base model. Raise ApiError for other names."""
        if model not in self.model_names:
            served = ", ".join(self.model_names)
            raise ApiError(404, f"the model {model!r} is not served; there is {served}", code="model_not_found",
                           param="model")  # fmt: skip
        return None if model == self.settings.name else model

    def max_tokens(self, *wanted: int | None) -> int:
        """Return the first limit that is not None, else the default."""
        return next((count for count in wanted if count is not None), self.settings.limits.default_max_tokens)

    @contextlib.asynccontextmanager
    async def admission(self, client: str) -> AsyncIterator[Admission]:
        """Yield an Admission for a request, and release its resources at the end."""
        async with contextlib.AsyncExitStack() as resources:
            yield Admission(self, client, resources)

    async def prepare_chat(self, turns: Sequence[Turn], admission: Admission) -> Prompt:
        """Load the images of a conversation and encode it. Raise UserError if it is not valid."""
        limits = self.settings.limits
        if len(turns) > limits.max_messages:
            raise UserError(f"a conversation may have at most {limits.max_messages} messages, got {len(turns)}")
        if self.settings.images_first:
            turns = [turn.images_first() for turn in turns]
        # This check comes before any image is fetched. Outer white space does not count.
        self.backend.processor.check_length(p.strip() for turn in turns for p in turn.pieces if isinstance(p, str))

        async def prepare() -> Prompt:
            await admission.wait(has_images=any(turn.images for turn in turns))
            # The image sources come from clients, so only the loader may open them.
            arranged = await self.in_thread(lambda: arrange(turns))
            loaded = await self._load([turn.images for turn in arranged], admission)
            encode = self.backend.processor.encode
            sample = await self.in_thread(lambda: encode(arranged, prepared=loaded.prepared if loaded else None))
            return Prompt(sample=sample, images=loaded.whole if loaded else ())

        return await self.run_unless_aborted(prepare())

    async def prepare_constraint(
        self, constraint: Constraint | None, admission: Admission, *, has_images: bool
    ) -> None:
        """Check that the grammars of an answer can be followed, and compile them. Raise UserError if they cannot."""
        if not isinstance(constraint, JsonSchema | ToolCalls):
            return
        tokenizer = self.backend.processor.tokenizer

        async def prepare() -> None:
            await admission.wait(has_images=has_images)
            await self._grammars.check(constraint.grammars, admission.client)
            # The compiled grammar is kept, so that the engine need not wait for it.
            await self.in_thread(lambda: constraint.start(tokenizer, 1))

        await self.run_unless_aborted(prepare())

    async def prepare_prompts(
        self, prompts: Sequence[str | Sequence[int]], sources: Sequence[str], admission: Admission
    ) -> list[Prompt]:
        """Load the images of raw prompts and encode the prompts. Each `<image>` stands for the next of `sources`.

        All prompts share the images, which are loaded once. A prompt of token ids gets no additional bos.
        """
        processor = self.backend.processor
        for prompt in prompts:  # each prompt may use the whole context
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
            await self.in_thread(check_places)  # before fetching, check that there is an image for each `<image>`
            loaded = await self._load([sources], admission)
            images = loaded.prepared if loaded else None

            def encode(prompt: str | Sequence[int]) -> Sample:
                if isinstance(prompt, str):
                    return processor.encode_prompt(prompt, sources, prepared=images)
                return processor.encode_ids(prompt, sources, prepared=images)

            samples = await self.in_thread(lambda: [encode(prompt) for prompt in prompts])
            return [Prompt(sample=sample, images=loaded.whole if loaded else ()) for sample in samples]

        return await self.run_unless_aborted(prepare())

    async def _load(self, messages: Sequence[Sequence[object]], admission: Admission) -> LoadedImages | None:
        sources = [[source for source in message if isinstance(source, str)] for message in messages]
        return await self._loader.load(sources, admission.client, admission) if any(sources) else None

    async def run_unless_aborted(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a part of the preparation of a request. Raise EngineStopped if the server ends requests meanwhile."""
        task = asyncio.create_task(work)
        self._preparing.add(task)
        try:
            if self._is_aborted:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            if self._is_aborted:
                raise EngineStopped("the server stopped before the answer was complete") from None
            raise
        finally:
            self._preparing.discard(task)

    async def in_thread(self, work: Callable[[], T]) -> T:
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
        """Pass a request for each prompt and its options to the backend."""
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
