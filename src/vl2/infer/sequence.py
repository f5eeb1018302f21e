"""The state of one request while it is decoded: its token budget, options and tokens, and the events that it emits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.infer.answer_stream import AnswerStream
from vl2.infer.constraint import ConstraintState
from vl2.infer.repetition import ends_in_loop
from vl2.infer.sampling import GenerateOptions, choose_token
from vl2.model_kind import ModelKind
from vl2.process.sample import Sample
from vl2.process.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "repetition", "cancelled"]


class ContextExceeded(UserError):
    """The prompt leaves no room for an answer in the context."""

    def __init__(self, sample: Sample, max_context: int) -> None:
        self.num_tokens, self.num_visual = len(sample), int(sample.image_mask.sum())
        self.max_context = max_context
        named = f" of {sample.name}" if sample.name else ""
        super().__init__(
            f"the prompt{named} has {self.num_tokens} tokens ({self.num_visual} visual), the context is "
            f"{max_context}: use fewer images or turns, a coarser tiling, or a larger max_context"
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the memory for generation. Raise UserError for values below 1."""

    max_num_seqs: int = 8  # requests decoded together
    prefill_chunk: int | None = None  # maximum number of tokens in a prefill chunk; None: no limit
    max_context: int = 4096  # tokens of one request's prompt and answer together

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "prefill_chunk", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One new token of a request, or its end."""

    request: int  # index of the request
    token_id: int | None  # None in the last event of a canceled request
    piece: str  # new text, possibly empty
    finish_reason: FinishReason | None = None
    probability: float | None = None  # of the token, before any sampling option, if the request asks for it


@dataclass(kw_only=True)
class SequenceState:
    """The state of one request while it is decoded."""

    request: int
    options: GenerateOptions
    text: AnswerStream
    generator: torch.Generator
    seen: set[int]
    max_new_tokens: int
    eos_id: int
    constraint: ConstraintState | None = None
    prompt_ids: Sequence[int] = ()  # the last ids of the prompt, as many as the n-gram guard's window
    new_ids: list[int] = field(default_factory=list)
    is_looped: bool = False  # the answer began to repeat itself, and ends as soon as possible

    @property
    def is_full(self) -> bool:
        return len(self.new_ids) >= self.max_new_tokens

    def end_loop(self) -> None:
        """End the answer if it has begun to repeat itself: at once, or as soon as its constraint can be met."""
        repeats = self.options.max_repeats
        if repeats == 0 or self.is_looped or not ends_in_loop(self.new_ids, repeats):
            return
        rest = 0 if self.constraint is None else self.constraint.num_to_finish
        self.max_new_tokens = min(self.max_new_tokens, len(self.new_ids) + rest)
        self.is_looped = True

    def choose(self, logits_V: Tensor) -> int:
        """Choose the next id from the logits and append it. Raise UserError if a constraint cannot be followed."""
        allowed_V = None
        if self.constraint is not None:
            allowed_V = self.constraint.allowed(self.max_new_tokens - len(self.new_ids))
        token_id = choose_token(
            logits_V,
            self.options,
            seen_ids=self.seen,
            new_ids=self.new_ids,
            prompt_ids=self.prompt_ids,
            generator=self.generator,
            allowed_V=allowed_V,
        )
        if self.constraint is not None and token_id != self.eos_id:
            self.constraint.advance(token_id)
        self.new_ids.append(token_id)
        self.seen.add(token_id)
        return token_id


def answer_budget(sample: Sample, options: GenerateOptions, limits: Limits) -> int:
    """Return the maximum number of tokens in the answer. Raise ContextExceeded if the prompt leaves room for none."""
    room = limits.max_context - len(sample)
    if room < 1:
        raise ContextExceeded(sample, limits.max_context)
    return min(options.max_new_tokens, room)


def check_bias(options: GenerateOptions, tokenizer: Tokenizer) -> None:
    """Raise UserError if `logit_bias` names an id that the tokenizer does not have."""
    unknown = next((token_id for token_id in options.logit_bias if token_id not in tokenizer), None)
    if unknown is not None:
        raise UserError(f"logit_bias: there is no token {unknown}; the ids are below {tokenizer.num_ids}")


def start_sequence(
    request: int,
    sample: Sample,
    options: GenerateOptions,
    budget: int,
    tokenizer: Tokenizer,
    kind: ModelKind = "DeepSeek-VL2",
) -> SequenceState:
    """Return the state of a new answer of at most `budget` tokens. Raise UserError if its constraint does not fit."""
    options = options.with_released_guard(kind, tokenizer)
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    ids, window = sample.input_ids.tolist(), options.no_repeat_ngram_window
    return SequenceState(
        request=request,
        options=options,
        text=AnswerStream(tokenizer, options.stop),
        generator=generator,
        seen=set(ids),
        prompt_ids=ids[-window:] if window else (),
        max_new_tokens=budget,
        eos_id=tokenizer.eos_id,
        constraint=None if options.constraint is None else options.constraint.start(tokenizer, budget),
    )


def step_sequence(sequence: SequenceState, logits_V: Tensor, eos_id: int) -> Event:
    """Choose the next token of a request from its logits, and return the event that reports it."""
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
