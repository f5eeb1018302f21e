"""The backend that runs this package's engine, and passes outputs from its thread to the server's event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vl2.infer.constraint import prepare_json
from vl2.infer.constraint_boxes import prepare_boxes
from vl2.infer.constraint_tools import prepare_tools
from vl2.infer.engine.engine import Engine, EngineStopped
from vl2.infer.engine.request import Job, Output, Task
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.vlm import VLM
from vl2.lora.switch import AdapterSwitch
from vl2.process.processor import Processor
from vl2.serve.backend import GenerationRequest, Timing
from vl2.serve.telemetry import MetricValues

RATE_WINDOW_S = 10.0


class EngineBackend:
    """A backend that runs the engine on a loaded model."""

    needs_images = False
    calls_tools = True

    def __init__(self, vlm: VLM, limits: EngineLimits, adapters: Mapping[str, Path]) -> None:
        switch = AdapterSwitch(vlm.runner.model, adapters) if adapters else None
        self.scheduler = Scheduler(vlm.runner, vlm.processor.tokenizer, limits, adapters=switch, reuse=vlm.reuse)
        self.processor: Processor = replace(vlm.processor, max_tokens=limits.max_context)
        self.max_context = limits.max_context
        self._engine = Engine(self.scheduler, self._deliver)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.open_answers: dict[int, _Answers] = {}  # by the identity of the job
        self._rates: deque[tuple[float, int]] = deque(maxlen=64)

    @property
    def is_ready(self) -> bool:
        return self._engine.is_alive

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Each takes a second with a large vocabulary. Prepared later, it would delay all requests that are active then.
        for prepare in (prepare_boxes, prepare_json, prepare_tools):
            await asyncio.to_thread(prepare, self.processor.tokenizer)
        self._engine.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self._engine.stop)
        # The engine's last step may take longer than `stop` waits, so its answers end with an error here.
        for answers in set(self.open_answers.values()):
            answers.fail(EngineStopped("the server stopped before the answer was complete"))
        self.open_answers.clear()

    async def open(self, requests: Sequence[GenerationRequest]) -> _Answers:
        jobs = [
            Job(
                sample=request.sample,
                options=request.options,
                client=request.client,
                adapter=request.adapter,
                num_logprobs=request.num_logprobs,
            )
            for request in requests
        ]
        answers = _Answers(self, jobs)
        for job in jobs:
            self.open_answers[id(job)] = answers
        try:
            if any(request.options.constraint is not None for request in requests):
                # Building a schema's grammar takes a while, so this runs in a thread. Other requests are quick.
                await asyncio.to_thread(self._submit, answers)
            else:
                self._submit(answers)
        except BaseException:
            answers.close()
            raise
        return answers

    def _submit(self, answers: _Answers) -> None:
        for job in answers.jobs:
            task = answers.tasks[id(job)] = self._engine.submit(job)
            if answers.is_closed:  # the client disconnected while this thread was working
                self._engine.cancel(task)

    def cancel(self, job: Job, task: Task | None) -> None:
        if self.open_answers.pop(id(job), None) is not None and task is not None:
            self._engine.cancel(task)

    def _deliver(self, outputs: Sequence[tuple[Task, Output]]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._dispatch, outputs)
        except RuntimeError:  # the event loop is closed, so no client is waiting
            return

    def _dispatch(self, outputs: Sequence[tuple[Task, Output]]) -> None:
        for task, output in outputs:
            answers = self.open_answers.get(id(task.job))
            if answers is None:
                continue
            if output.is_last:
                del self.open_answers[id(task.job)]
            answers.put(task.job, task, output)

    def metric_values(self) -> MetricValues:
        scheduler, totals, reuse = self.scheduler, self.scheduler.totals, self.scheduler.reuse
        return {
            "vl2_queue_length": self._engine.num_waiting,
            "vl2_running": scheduler.num_running,
            "vl2_cache_tokens_reserved": scheduler.num_reserved,
            "vl2_cache_tokens_limit": scheduler.limits.cache_tokens,
            "vl2_tokens_per_second": self._rate(totals.generated_tokens),
            "vl2_generated_tokens": totals.generated_tokens,
            "vl2_prompt_tokens": totals.prompt_tokens,
            "vl2_visual_tokens": totals.visual_tokens,
            "vl2_tiles": totals.tiles,
            "vl2_decode_steps": totals.steps,
            "vl2_draft_tokens": totals.draft_tokens,
            "vl2_accepted_tokens": totals.accepted_tokens,
            "vl2_busy_seconds": totals.busy_s,
            "vl2_encoder_cache_hits": reuse.encoder.hits,
            "vl2_encoder_cache_misses": reuse.encoder.misses,
            "vl2_encoder_cache_bytes": reuse.encoder.nbytes,
            "vl2_prefix_cache_reused_tokens": reuse.prefix.reused_tokens,
            "vl2_prefix_cache_read_tokens": reuse.prefix.read_tokens,
            "vl2_prefix_cache_bytes": reuse.prefix.nbytes,
        }

    def _rate(self, num_tokens: int) -> float:
        """Return tokens per second since the oldest reading in the window, or since the last one if all are older."""
        now = time.monotonic()
        while len(self._rates) > 1 and now - self._rates[0][0] > RATE_WINDOW_S:
            self._rates.popleft()
        then, before = self._rates[0] if self._rates else (now, num_tokens)
        self._rates.append((now, num_tokens))
        return (num_tokens - before) / (now - then) if now > then else 0.0


class _Answers:
    """The answers to jobs that were submitted together."""

    def __init__(self, backend: EngineBackend, jobs: Sequence[Job]) -> None:
        self._backend = backend
        self.jobs = list(jobs)
        self.tasks: dict[int, Task] = {}
        self._index = {id(job): i for i, job in enumerate(jobs)}
        self._outputs: asyncio.Queue[tuple[int, Output] | None] = asyncio.Queue()
        self._num_left = len(jobs)
        self.is_closed = False

    def put(self, job: Job, task: Task, output: Output) -> None:
        self.tasks[id(job)] = task
        self._outputs.put_nowait((self._index[id(job)], output))

    def fail(self, error: Exception) -> None:
        """End the answers that have not ended with an error."""
        for index, job in enumerate(self.jobs):
            if id(job) in self._backend.open_answers:
                self._outputs.put_nowait((index, Output(error=error)))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        while self._num_left and (item := await self._outputs.get()) is not None:
            self._num_left -= item[1].is_last
            yield item

    def close(self) -> None:
        self.is_closed = True
        for job in self.jobs:
            self._backend.cancel(job, self.tasks.get(id(job)))
        self._outputs.put_nowait(None)

    def timing(self, index: int) -> Timing:
        task = self.tasks.get(id(self.jobs[index]))
        if task is None:
            return Timing(started_s=None, first_token_s=None)
        return Timing(
            started_s=task.started_at - task.added_at if task.started_at else None,
            first_token_s=task.first_token_at - task.added_at if task.first_token_at else None,
            whole_s=task.ended_at - task.added_at if task.ended_at else None,
            num_reused=task.num_reused,
            num_drafted=0 if task.speculation is None else task.speculation.num_drafted,
            num_accepted=0 if task.speculation is None else task.speculation.num_accepted,
        )
