"""Generate answers to a list of requests, decoded together, and yield their tokens as they come.

Golden: generate in tests/golden/reference/model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from vl2.infer.engine.request import Job
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.prefill import Reuse
from vl2.infer.sampling import GenerateOptions
from vl2.infer.sequence import Event, Limits, answer_budget
from vl2.kernels.matmul import MAX_DECODED_ROWS
from vl2.model import VL2
from vl2.process.sample import Sample
from vl2.process.tokenizer import Tokenizer
from vl2.runtime import Runner, choose_runner


def generate(
    model: VL2 | Runner,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    options: Sequence[GenerateOptions],
    *,
    limits: Limits,
    reuse: Reuse | None = None,
    with_probabilities: Sequence[bool] | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Yield an Event for each token of each request, in order within a request. Its last Event has a finish reason.

    `model` may be a runner; for a plain model a new runner is chosen. `reuse` holds the caches of earlier calls with
    the same runner. `with_probabilities` says which requests' events have the probability of their token.
    `is_cancelled` is called before each step. Closing the iterator stops the work. Raise UserError, before anything
    runs, if a prompt exceeds the context.
    """
    if not samples:
        return
    lengths = [len(sample) + answer_budget(sample, made, limits) for sample, made in zip(samples, options, strict=True)]
    max_num_seqs = min(limits.max_num_seqs, len(samples), MAX_DECODED_ROWS)
    scheduler = Scheduler(
        choose_runner(model) if isinstance(model, VL2) else model,
        tokenizer,
        EngineLimits(
            max_num_seqs=max_num_seqs,
            prefill_chunk=limits.prefill_chunk,
            max_context=limits.max_context,
            cache_tokens=max_num_seqs * limits.max_context,
        ),
        reuse=reuse or Reuse(encoder_bytes=0, prefix_bytes=0),
        longest=max(lengths),
    )
    with closing(scheduler):
        asked = [0 if wanted else None for wanted in with_probabilities or [False] * len(samples)]
        jobs = (
            Job(sample=sample, options=made, num_logprobs=number)
            for sample, made, number in zip(samples, options, asked, strict=True)
        )
        numbers = {scheduler.make_task(job): number for number, job in enumerate(jobs)}
        for task in numbers:
            scheduler.add(task)
        while scheduler.has_work:
            if is_cancelled():
                for task in scheduler.drop_all():
                    yield Event(request=numbers[task], token_id=None, piece="", finish_reason="cancelled")
                return
            for task, output in scheduler.step():
                if output.error is not None:
                    raise output.error
                yield Event(
                    request=numbers[task],
                    token_id=output.token_id,
                    piece=output.piece,
                    finish_reason=output.finish_reason,
                    probability=None if output.logprobs is None else math.exp(output.logprobs.chosen),
                )
