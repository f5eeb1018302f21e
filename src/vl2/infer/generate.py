"""Generation for any number of requests: each prompt is prefilled alone, then all rows decode together.

A request waits until one of the cache's rows is free, is prefilled into it (chunk by chunk), and then
takes part in one joint decoding step per token until it stops. Nothing that runs beside a request, and
no padding, enters its arithmetic. Logits are computed for the last position only.

Golden: generate in tests/golden/reference/model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vl2.errors import UserError, memory_errors
from vl2.infer.answer_stream import AnswerStream
from vl2.infer.constraint import ConstraintState
from vl2.infer.decode_graph import DecodeGraphs
from vl2.infer.graph_cache import acquired_graphs, drop_graphs
from vl2.infer.language_plan import language_plan
from vl2.infer.prefill import Prefill, Reuse
from vl2.infer.repetition import ends_in_loop
from vl2.infer.sampling import GenerateOptions, choose_token
from vl2.model import VL2, Cache
from vl2.process.sample import Sample
from vl2.process.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "repetition", "cancelled"]
Step = Callable[[Sequence[int], Cache], Tensor]  # append one token to every row; float32 logits [B, V]


class ContextExceeded(UserError):
    """A prompt leaves no room for an answer in the context."""

    def __init__(self, sample: Sample, max_context: int) -> None:
        self.num_tokens, self.num_visual = len(sample), int(sample.image_mask.sum())
        self.max_context = max_context
        named = f" of {sample.name}" if sample.name else ""
        super().__init__(
            f"the prompt{named} has {self.num_tokens} tokens ({self.num_visual} visual), the context is "
            f"{max_context}: use fewer images or turns, the tiling budget:N, or a larger max_context"
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds the memory of generation."""

    max_rows: int = 8  # requests decoded together
    prefill_chunk: int | None = None  # at most so many tokens per prefill chunk; None: no bound
    max_context: int = 4096  # prompt and answer of one request

    def __post_init__(self) -> None:
        for name in ("max_rows", "prefill_chunk", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One request got new text, or ended."""

    request: int  # index into the requests
    token_id: int | None  # None with the last event of a request that was cancelled
    piece: str  # new text, possibly empty
    finish_reason: FinishReason | None = None


@dataclass(kw_only=True)
class SequenceState:
    """The state of one request while it is decoded: a sequence."""

    request: int
    options: GenerateOptions
    text: AnswerStream
    generator: torch.Generator
    seen: set[int]
    max_new_tokens: int
    eos_id: int
    constraint: ConstraintState | None = None
    new_ids: list[int] = field(default_factory=list)
    is_looped: bool = False  # it began to repeat itself, and is to end

    @property
    def is_full(self) -> bool:
        return len(self.new_ids) >= self.max_new_tokens

    def end_loop(self) -> None:
        """Where the answer has begun to repeat itself, let it end: now, or as soon as its constraint can be met."""
        repeats = self.options.max_repeats
        if repeats == 0 or self.is_looped or not ends_in_loop(self.new_ids, repeats):
            return
        rest = 0 if self.constraint is None else self.constraint.num_to_finish
        self.max_new_tokens = min(self.max_new_tokens, len(self.new_ids) + rest)
        self.is_looped = True

    def choose(self, logits_V: Tensor) -> int:
        """Draw the next id. UserError if a constraint cannot be followed further."""
        allowed_V = None
        if self.constraint is not None:
            allowed_V = self.constraint.allowed(self.max_new_tokens - len(self.new_ids))
        token_id = choose_token(
            logits_V,
            self.options,
            seen_ids=self.seen,
            new_ids=self.new_ids,
            generator=self.generator,
            allowed_V=allowed_V,
        )
        if self.constraint is not None and token_id != self.eos_id:
            self.constraint.advance(token_id)
        self.new_ids.append(token_id)
        self.seen.add(token_id)
        return token_id


def decode(model: VL2, token_ids: Sequence[int], cache: Cache) -> Tensor:
    """Append one token to every row and return the logits that follow, float32 [B, V]."""
    plan = language_plan(model.language)
    return decode_plainly(model, token_ids, cache) if plan is None else plan.run(token_ids, cache)


def decode_plainly(model: VL2, token_ids: Sequence[int], cache: Cache) -> Tensor:
    """Do what `decode` does, layer by layer in PyTorch."""
    ids_B1 = torch.tensor(token_ids, device=model.device).unsqueeze(1)
    states_B1D = model.language.extend(model.language.embed(ids_B1), cache)
    return model.language.logits(states_B1D[:, -1])


@contextmanager
def decoding(model: VL2, num_rows: int, capacity: int, *, max_capacity: int) -> Iterator[tuple[Cache, Step]]:
    """Give an empty cache of at least so many rows and positions, and the step that decodes its first rows.

    Where steps can be graphs, both are kept for the next call, and may have up to `max_capacity` positions.
    """
    if DecodeGraphs.applies(model):
        with acquired_graphs(model, num_rows, capacity, max_capacity=max_capacity) as graphs:
            yield graphs.cache, graphs.decode
        return
    drop_graphs(model)  # of when it lay elsewhere
    with memory_errors(f"a cache of {num_rows} rows of {capacity} tokens"):
        cache = Cache.allocate(model.config.language_config, num_rows, capacity, dtype=model.dtype, device=model.device)
    yield cache, partial(decode, model)


@torch.inference_mode()
def generate(
    model: VL2,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    options: Sequence[GenerateOptions],
    *,
    limits: Limits,
    reuse: Reuse | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Yield an Event per token of any request, in order within a request; each ends with a finish reason.

    `reuse` is what earlier calls left. Closing the iterator stops the work. UserError, before anything runs, if a
    prompt exceeds the context.
    """
    budgets = [answer_budget(s, o, limits) for s, o in zip(samples, options, strict=True)]
    for option in options:
        check_bias(option, tokenizer)
    if not samples:
        return
    num_rows = min(limits.max_rows, len(samples))
    capacity = max(len(s.input_ids) + budget for s, budget in zip(samples, budgets, strict=True))
    waiting = deque(range(len(samples)))
    active: list[SequenceState] = []
    with decoding(model, num_rows, capacity, max_capacity=limits.max_context) as (cache, take_step):
        while waiting or active:
            if is_cancelled():
                for request in [sequence.request for sequence in active] + list(waiting):
                    yield Event(request=request, token_id=None, piece="", finish_reason="cancelled")
                return
            if waiting and len(active) < num_rows:
                request = waiting.popleft()
                place = cache.rows(len(active), len(active) + 1)
                place.lengths = [0]
                prompt = Prefill(
                    model,
                    samples[request],
                    place,
                    assistant_id=tokenizer.assistant_id,
                    max_chunk=limits.prefill_chunk,
                    reuse=reuse,
                )
                first_V = prompt.step()
                while first_V is None and not is_cancelled():
                    first_V = prompt.step()
                if first_V is None:
                    waiting.appendleft(request)
                    continue
                cache.lengths[len(active)] = place.lengths[0]
                active.append(start_sequence(request, samples[request], options[request], budgets[request], tokenizer))
                stepped = [(active[-1], first_V)]
            else:
                rows = cache.rows(0, len(active))
                logits_BV = take_step([sequence.new_ids[-1] for sequence in active], rows)
                cache.lengths[: len(active)] = rows.lengths
                stepped = list(zip(active, logits_BV, strict=True))
            for sequence, logits_V in stepped:
                event = step_sequence(sequence, logits_V, tokenizer.eos_id)
                if event.finish_reason is not None:
                    _close_gap(active, sequence, cache)
                yield event


def answer_budget(sample: Sample, options: GenerateOptions, limits: Limits) -> int:
    """Return how many tokens the answer may have. ContextExceeded where the prompt leaves room for none."""
    room = limits.max_context - len(sample)
    if room < 1:
        raise ContextExceeded(sample, limits.max_context)
    return min(options.max_new_tokens, room)


def check_bias(options: GenerateOptions, tokenizer: Tokenizer) -> None:
    """Raise UserError where `logit_bias` names an id that the tokenizer does not have."""
    unknown = next((token_id for token_id in options.logit_bias if token_id not in tokenizer), None)
    if unknown is not None:
        raise UserError(f"logit_bias: there is no token {unknown}; the ids are below {tokenizer.num_ids}")


def start_sequence(
    request: int, sample: Sample, options: GenerateOptions, budget: int, tokenizer: Tokenizer
) -> SequenceState:
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    return SequenceState(
        request=request,
        options=options,
        text=AnswerStream(tokenizer, options.stop),
        generator=generator,
        seen=set(sample.input_ids.tolist()),
        max_new_tokens=budget,
        eos_id=tokenizer.eos_id,
        constraint=None if options.constraint is None else options.constraint.start(tokenizer, budget),
    )


def step_sequence(sequence: SequenceState, logits_V: Tensor, eos_id: int) -> Event:
    token_id = sequence.choose(logits_V)
    reason: FinishReason | None = None
    if token_id == eos_id:
        piece, reason = sequence.text.finish(), "stop"
    else:
        piece = sequence.text.push(token_id)
        sequence.end_loop()
        if sequence.text.is_stopped:
            reason = "stop"
        elif sequence.is_full:
            piece, reason = piece + sequence.text.finish(), "repetition" if sequence.is_looped else "length"
            reason = "stop" if sequence.text.is_stopped else reason
    return Event(request=sequence.request, token_id=token_id, piece=piece, finish_reason=reason)


def _close_gap(active: list[SequenceState], finished: SequenceState, cache: Cache) -> None:
    """Drop a finished sequence and move the row of the last active one into its place."""
    index, last = active.index(finished), len(active) - 1
    if index != last:
        cache.move_row(last, index)
        active[index] = active[last]
    active.pop()
