"""Continuous batching: each step prefills some chunks of new requests, then decodes every running request.

A request waits until a row is free and the cache positions that it may need fit into the budget. Its prompt is
prefilled in chunks, one or a few between two decoding steps, so that a long prompt does not delay other requests.
Every request has its own cache row. All rows with the same adapter are decoded together, one token of each, or several
where the next ones can be guessed (`vl2.infer.speculation`). The runner computes this step
so that the answer of a request does not depend on the other rows, bit for bit; a test verifies this.

A Scheduler must not be shared between threads; `Engine` may be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.infer.engine.request import FairQueue, Job, Logprobs, Output, Task
from vl2.infer.prefill import Prefill, Reuse
from vl2.infer.sequence import Limits, answer_budget, check_bias, start_sequence, step_sequence
from vl2.infer.speculation import DraftToken, StepTimes, plan_step, start_speculation
from vl2.kernels.matmul import MAX_DECODED_ROWS
from vl2.lora.switch import AdapterSwitch
from vl2.model import Cache
from vl2.process.tokenizer import Tokenizer
from vl2.runtime import CachePool, PlainRunner, Runner

ROWS_TOGETHER = 16
# Between two decoding steps, at most a piece for each prompt: those that begin in so many seconds, or at least so many.
PREFILL_S = 0.2
PREFILL_PIECES = 2


@dataclass(frozen=True, kw_only=True)
class EngineLimits(Limits):
    """Limits of the engine's memory. Raise UserError for invalid values."""

    max_num_seqs: int = 16  # requests prefilled or decoded at once
    prefill_chunk: int | None = 512  # maximum number of tokens in a prefill chunk; None: no limit
    cache_tokens: int = 65_536  # cache positions of all running requests together
    max_waiting: int = 256  # requests in the queue

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_tokens < self.max_context:
            raise UserError(
                f"cache_tokens must hold one request of the whole context, {self.max_context}, got {self.cache_tokens}"
            )
        if self.max_num_seqs > MAX_DECODED_ROWS:
            raise UserError(f"max_num_seqs must be at most {MAX_DECODED_ROWS}, got {self.max_num_seqs}")
        if self.max_waiting < 1:
            raise UserError(f"max_waiting must be at least 1, got {self.max_waiting}")


@dataclass(kw_only=True)
class Totals:
    """Counters of a scheduler's work since it was created."""

    steps: int = 0  # joint decoding steps
    generated_tokens: int = 0
    draft_tokens: int = 0  # decoded before it was known whether they belong to the answer
    accepted_tokens: int = 0  # those of them that do
    prompt_tokens: int = 0
    visual_tokens: int = 0
    tiles: int = 0
    busy_s: float = field(default=0.0)


class Scheduler:
    """Run prefill and decoding of many requests, one step at a time."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        limits: EngineLimits,
        *,
        adapters: AdapterSwitch | None = None,
        reuse: Reuse | None = None,
        longest: int | None = None,
    ) -> None:
        """Create a scheduler without requests.

        `adapters` switch the adapter of the runner's model. No request has more than `longest` positions; None means
        the context limit. Call `close` at the end to free the cache.
        """
        self.limits, self._longest = limits, longest or limits.max_context
        self.reuse = reuse or Reuse()
        self.totals = Totals()
        self._runner, self._tokenizer = runner, tokenizer
        self._adapters = adapters
        # Requests with an adapter run in plain PyTorch: the runner itself knows only the model's own weights.
        self._with_adapter = PlainRunner(runner.model)
        self._pool: CachePool | None = None  # created with the first request
        self._waiting: FairQueue[Task] = FairQueue()
        self._prefilling: list[Task] = []  # in the order of their start
        self._decoding: list[Task] = []
        self._is_turn_of_shortest = self._is_turn_of_decoding = False
        self._num_joint_rows = joint_rows(limits.max_num_seqs)
        self._window = runner.model.config.answer_window
        self._step_times = StepTimes()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_reserved(self) -> int:
        """The number of cache positions reserved for running requests."""
        return sum(task.num_reserved for task in (*self._prefilling, *self._decoding))

    @property
    def has_work(self) -> bool:
        return bool(self._prefilling or self._decoding or len(self._waiting))

    def make_task(self, job: Job) -> Task:
        """Return a task for a job. It is not queued yet.

        Raise UserError if the prompt exceeds the context, if the adapter or a token id is unknown, or if the constraint
        cannot be met.
        """
        if job.adapter is not None and (self._adapters is None or job.adapter not in self._adapters.names):
            raise UserError(f"there is no adapter {job.adapter!r}")
        budget = answer_budget(job.sample, job.options, self.limits)
        check_bias(job.options, self._tokenizer)
        if job.options.constraint is not None:
            job.options.constraint.start(self._tokenizer, budget)  # refuse an impossible constraint before queuing
        # One position more than the window: while other rows are decoded, an idle row may write to the next position.
        held = budget if self._window is None else min(budget, self._window + 1)
        return Task(job=job, max_new_tokens=budget, num_reserved=len(job.sample) + held)

    def add(self, task: Task) -> None:
        self._waiting.add(task.job.client, task)

    def cancel(self, task: Task) -> bool:
        """Drop a waiting or running task and free its row. Return False if it has ended already."""
        if self._waiting.remove(task.job.client, task):
            return True
        for tasks in (self._prefilling, self._decoding):
            if task in tasks:
                tasks.remove(task)
                self._free(task)
                return True
        return False

    def drop_all(self) -> list[Task]:
        """Drop every task and return them."""
        tasks = [*self._waiting, *self._prefilling, *self._decoding]
        for task in tasks:
            self.cancel(task)
        return tasks

    def close(self) -> None:
        """Drop every task and free the cache."""
        self.drop_all()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @torch.inference_mode()
    def step(self) -> list[tuple[Task, Output]]:
        """Prefill one chunk or a few, then decode one token or some of every answer, and return the outputs.

        If prefill gives first tokens, the step returns them at once, without decoding, and the next step decodes.
        """
        began = time.monotonic()
        outputs = [] if self._is_turn_of_decoding else self._prefill_some(began)
        self._is_turn_of_decoding = bool(outputs)
        if not outputs:
            outputs = self._decode_all()
        self.totals.busy_s += time.monotonic() - began
        return outputs

    def _prefill_some(self, began: float) -> list[tuple[Task, Output]]:
        """Admit requests, and prefill a piece of one prompt, or of several if several are being prefilled.

        A decoding step takes nearly the same time for one answer as for many. So with many requests, first tokens come
        much sooner and answers end no later if prompts get more of the time; the pause in the answers stays short.
        """
        outputs = self._admit()
        for number in range(len(self._prefilling)):
            is_quick = time.monotonic() - began < PREFILL_S
            if number and not (is_quick or (number < PREFILL_PIECES and not outputs)):
                break
            outputs += self._prefill(self._next_to_prefill())
            if not self._decoding:
                break
        return outputs

    def _decode_all(self) -> list[tuple[Task, Output]]:
        outputs: list[tuple[Task, Output]] = []
        by_adapter: dict[str | None, list[Task]] = {}
        for task in self._decoding:
            by_adapter.setdefault(task.job.adapter, []).append(task)
        for adapter, tasks in by_adapter.items():
            outputs += self._decode(adapter, tasks)
        return outputs

    def _admit(self) -> list[tuple[Task, Output]]:
        failed = []
        while self.num_running < self._num_rows and (task := self._waiting.peek()) is not None:
            if self.num_reserved + task.num_reserved > self.limits.cache_tokens:
                break
            self._waiting.pop()
            task.started_at = time.monotonic()
            failure = _attempt(lambda task=task: self._start(task))  # type: ignore[misc]
            if failure is None:
                self._prefilling.append(task)
            else:
                self._free(task)
                failed.append((task, Output(error=failure)))
        return failed

    @property
    def _num_rows(self) -> int:
        return self.limits.max_num_seqs if self._pool is None else self._pool.num_rows

    @torch.inference_mode()
    def prepare(self) -> None:
        """Allocate the cache and record the graphs that decode, where the runner has any, before the first request."""
        self._open_pool().prepare()

    def _open_pool(self) -> CachePool:
        if self._pool is None:
            self._pool = self._runner.cache_pool(self.limits.max_num_seqs, self._longest, self.limits.cache_tokens)
        return self._pool

    def _start(self, task: Task) -> None:
        sample, adapter = task.job.sample, task.job.adapter
        task.cache = self._open_pool().take(task.num_reserved)
        task.prefill = Prefill(
            self._runner_of(adapter),
            sample,
            task.cache,
            opening_id=self._tokenizer.opening_id,
            max_chunk=self.limits.prefill_chunk,
            reuse=self.reuse,
            variant=adapter or "",
        )
        self.totals.prompt_tokens += len(sample)
        self.totals.visual_tokens += int(sample.image_mask.sum())
        self.totals.tiles += sample.num_views

    def _next_to_prefill(self) -> Task:
        """Return alternately the oldest prompt and the one with the fewest tokens left to prefill.

        If the oldest always came first, a short question would wait for a long prompt; if the shortest always came
        first, a long prompt might wait forever.
        """
        self._is_turn_of_shortest = not self._is_turn_of_shortest
        if self._is_turn_of_shortest:
            return min(self._prefilling, key=lambda task: task.prefill.num_left if task.prefill else 0)
        return self._prefilling[0]

    def _prefill(self, task: Task) -> list[tuple[Task, Output]]:
        outputs: list[tuple[Task, Output]] = []

        def prefill() -> None:
            assert task.prefill is not None
            self._use(task.job.adapter)
            logits_V = task.prefill.step()
            task.num_reused = task.prefill.num_reused
            if logits_V is None:
                return
            budget = task.max_new_tokens
            task.prefill = None
            kind = self._runner.model.config.kind
            task.sequence = start_sequence(0, task.job.sample, task.job.options, budget, self._tokenizer, kind)
            if self._can_draft(task):
                task.speculation = start_speculation(task.job.sample, task.job.options, self._tokenizer)
            self._prefilling.remove(task)
            self._decoding.append(task)
            outputs.append((task, self._choose(task, logits_V)))

        if (failure := _attempt(prefill)) is not None:
            self._end(task)
            return [(task, Output(error=failure))]
        return outputs

    def _can_draft(self, task: Task) -> bool:
        """Whether several tokens of an answer can be decoded in one step, with the bits of one by one."""
        has_steps = task.job.options.speculation and self._window is None
        return has_steps and self._runner_of(task.job.adapter).can_verify

    def _decode(self, adapter: str | None, tasks: list[Task]) -> list[tuple[Task, Output]]:
        """Decode one token of every task, and with it the guessed ones that probably follow."""
        began = time.monotonic()
        drafts: list[list[DraftToken]] = []
        logits: list[Tensor] = []

        def decode() -> None:
            self._use(adapter)
            drafts.extend(self._draft(tasks))
            ids, caches = list[int](), list[Cache]()
            for task, drafted in zip(tasks, drafts, strict=True):
                assert task.sequence is not None
                assert task.cache is not None
                if self._window is not None:
                    task.cache.make_room(len(task.job.sample), self._window)
                ids += [task.sequence.new_ids[-1], *(draft.token_id for draft in drafted)]
                caches += [task.cache] * (1 + len(drafted))
            logits.extend(self._runner_of(adapter).decode(ids, caches, self._num_joint_rows))

        if (failure := _attempt(decode)) is not None:
            for task in tasks:
                self._end(task)
            return [(task, Output(error=failure)) for task in tasks]
        self.totals.steps += 1
        outputs, first = list[tuple[Task, Output]](), 0
        for task, drafted in zip(tasks, drafts, strict=True):
            outputs += self._choose_all(task, drafted, logits[first : first + 1 + len(drafted)])
            first += 1 + len(drafted)
        if any(task.speculation is not None for task in tasks):
            self._step_times.add(len(logits), time.monotonic() - began)
        return outputs

    def _draft(self, tasks: Sequence[Task]) -> list[list[DraftToken]]:
        """Return the guessed tokens of every task that are worth decoding in the next step."""
        found = [
            [] if task.speculation is None or task.sequence is None else task.speculation.draft(task.sequence)
            for task in tasks
        ]
        counts = plan_step(found, self._step_times)
        return [drafts[:count] for drafts, count in zip(found, counts, strict=True)]

    def _choose_all(
        self, task: Task, drafted: Sequence[DraftToken], logits: Sequence[Tensor]
    ) -> list[tuple[Task, Output]]:
        """Choose tokens as long as the guesses are right, and take the others out of the cache."""
        assert task.cache is not None
        outputs, num_decoded = list[tuple[Task, Output]](), len(drafted) + 1
        for number, logits_V in enumerate(logits):
            try:
                output = self._choose(task, logits_V)
            except Exception as error:
                self._end(task)
                output = Output(error=error)
            outputs.append((task, output))
            if output.is_last or number == len(drafted) or output.token_id != drafted[number].token_id:
                break
        num_accepted = len(outputs) - 1
        self.totals.draft_tokens += len(drafted)
        self.totals.accepted_tokens += num_accepted
        if task.speculation is not None:
            task.speculation.judge(drafted, num_accepted)
        if task.cache is not None and len(outputs) < num_decoded:
            task.cache.cut(task.cache.lengths[0] - num_decoded + len(outputs))
        return outputs

    def _choose(self, task: Task, logits_V: Tensor) -> Output:
        assert task.sequence is not None
        event = step_sequence(task.sequence, logits_V, self._tokenizer.eos_id)
        assert event.token_id is not None
        self.totals.generated_tokens += 1
        if task.speculation is not None:
            task.speculation.lookup.add(event.token_id)
        if task.first_token_at is None:
            task.first_token_at = time.monotonic()
        if event.finish_reason is not None:
            self._end(task)
        return Output(
            token_id=event.token_id,
            piece=event.piece,
            finish_reason=event.finish_reason,
            logprobs=_logprobs(logits_V, event.token_id, task.job.num_logprobs),
        )

    def _end(self, task: Task) -> None:
        task.ended_at = time.monotonic()
        self.cancel(task)

    def _use(self, adapter: str | None) -> None:
        if self._adapters is not None:
            self._adapters.use(adapter)

    def _runner_of(self, adapter: str | None) -> Runner:
        return self._runner if adapter is None else self._with_adapter

    def _free(self, task: Task) -> None:
        if task.cache is not None and self._pool is not None:
            self._pool.give_back(task.cache)
        task.cache = task.prefill = task.sequence = None


def joint_rows(max_num_seqs: int) -> int:
    """Return the number of rows to which every decoding step of up to `max_num_seqs` requests is padded.

    The number is fixed because a matrix product of another shape may round differently. It is a multiple of the rows
    that matrix libraries process together, because they may compute the rows of an incomplete group differently.
    """
    return 1 if max_num_seqs == 1 else -(-max_num_seqs // ROWS_TOGETHER) * ROWS_TOGETHER


def _attempt(work: Callable[[], None]) -> Exception | None:
    """Do the work of some requests and return its exception, if any, so that a failure ends only these requests."""
    try:
        work()
    except Exception as error:
        return error
    return None


def _logprobs(logits_V: Tensor, token_id: int, num_likeliest: int | None) -> Logprobs | None:
    if num_likeliest is None:
        return None
    log_p_V = logits_V.log_softmax(dim=-1)
    values, ids = log_p_V.topk(min(num_likeliest, len(log_p_V)))
    return Logprobs(chosen=float(log_p_V[token_id]), likeliest=dict(zip(ids.tolist(), values.tolist(), strict=True)))
