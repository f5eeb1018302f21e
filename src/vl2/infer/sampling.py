"""Choose the next token from logits: pure functions on one request's float32 logits [V], on any device.

The order is: bias, repetition penalty, frequency and presence penalties, constraint, n-gram guard. With a temperature
above 0 there follow temperature, top-k, top-p, min-p and one draw from the request's own generator. A request's draws
therefore never depend on other requests.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.infer.constraint import NEVER, Constraint, keep_allowed
from vl2.infer.ngram_guard import ban_repeated_ngrams, guarded_ids, released_guard
from vl2.model_kind import ModelKind
from vl2.process.tokenizer import Tokenizer

WHOLE_NUMBERS = (
    "max_new_tokens", "top_k", "no_repeat_ngram_size", "no_repeat_ngram_window", "max_repeats", "seed",
)  # fmt: skip
UNSAID = ("seed", "no_repeat_ngram_size")  # options that may be None
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
SEEDS = range(-(2**63), 2**64)  # seeds that PyTorch's generators accept
LEAST_TEMPERATURE = 1e-6  # dividing float32 by less may give NaN, and the likeliest id would be drawn anyway
MOST_TEMPERATURE = 1e30  # all ids are equally likely long before this; larger divisors may exceed float32


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How an answer is generated. The defaults decode greedily.

    Raise UserError if a value has a wrong type or is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0  # below LEAST_TEMPERATURE, decoding is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # applied to the ids of prompt and answer
    frequency_penalty: float = 0.0  # -2..2, as in OpenAI's API: subtracted for each time that an id was generated
    presence_penalty: float = 0.0  # -2..2: subtracted once from the logit of every id that was generated
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of these ids; -100..100
    no_repeat_ngram_size: int | None = None  # no n-gram of this size may repeat; 0: off; None: as released
    no_repeat_ngram_window: int = 0  # the number of last ids of prompt and answer checked; 0: the whole answer
    no_repeat_ngram_allowed: Sequence[int] = ()  # ids that may complete a repeated n-gram
    stop: Sequence[str] = ()  # the answer ends before the first occurrence of one of these
    seed: int | None = None  # None: a random seed
    constraint: Constraint | None = None  # the form of the answer: JsonSchema(...), WellFormedBoxes()
    max_repeats: int = 0  # end an answer when a passage occurs this many times in a row; 0: off
    prediction: str = ""  # what the answer will probably say; makes it faster where it does, and never another one
    speculation: bool = True  # guess tokens and check them together where that is exact and faster

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name in WHOLE_NUMBERS:
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in NUMBERS:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            _check(is_number, f"{name} must be a number", repr(value))
            if isinstance(value, int) and value.bit_length() > 1000:  # may be too large for a float
                object.__setattr__(self, name, math.inf)
        _check(self.seed is None or self.seed in SEEDS, "seed must be in -2^63..2^64-1", self.seed)
        _check(self.max_new_tokens >= 1, "max_new_tokens must be at least 1", self.max_new_tokens)
        _check(0 <= self.temperature < math.inf, "temperature must be at least 0 (0 is greedy)", self.temperature)
        _check(0 < self.top_p <= 1, "top_p must be above 0 and at most 1", self.top_p)
        _check(self.top_k >= 0, "top_k must be at least 0 (0 is off)", self.top_k)
        _check(0 <= self.min_p <= 1, "min_p must be in 0..1", self.min_p)
        _check(
            0 < self.repetition_penalty < math.inf,
            "repetition_penalty must be above 0 (1 is off)",
            self.repetition_penalty,
        )
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _check(-2 <= value <= 2, f"{name} must be in -2..2 (0 is off)", value)
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        _check(self.no_repeat_ngram_size is None or self.no_repeat_ngram_size >= 0,
               "no_repeat_ngram_size must be at least 0 (0 is off)", self.no_repeat_ngram_size)  # fmt: skip
        _check(self.no_repeat_ngram_window >= 0, "no_repeat_ngram_window must be at least 0 (0 is the whole answer)",
               self.no_repeat_ngram_window)  # fmt: skip
        object.__setattr__(self, "no_repeat_ngram_allowed", _checked_ids(self.no_repeat_ngram_allowed))
        _check(self.max_repeats == 0 or self.max_repeats >= 2, "max_repeats must be at least 2 (0 is off)",
               self.max_repeats)  # fmt: skip
        _check(isinstance(self.prediction, str), "prediction must be a text", type(self.prediction).__name__)
        _check(isinstance(self.speculation, bool), "speculation must be true or false", repr(self.speculation))
        _check(all(isinstance(s, str) and s for s in self.stop), "stop strings must not be empty", list(self.stop))

    def with_released_guard(self, kind: ModelKind, tokenizer: Tokenizer) -> GenerateOptions:
        """Return options with the n-gram guard that the model was released with where none is set (size None)."""
        if self.no_repeat_ngram_size is not None:
            return self
        size, window, allowed = released_guard(kind, tokenizer)
        return replace(
            self,
            no_repeat_ngram_size=size,
            no_repeat_ngram_window=self.no_repeat_ngram_window or window,
            no_repeat_ngram_allowed=self.no_repeat_ngram_allowed or allowed,
        )


def changed_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options that differ from the defaults. A constraint is given as text."""
    defaults = vars(GenerateOptions())
    changed = {name: value for name, value in options.items() if value != defaults.get(name)}
    return {name: repr(value) if name == "constraint" else value for name, value in changed.items()}


def _whole(name: str, value: object) -> object:
    """Return a whole number as an int: tables and JSON may give 4.0 for 4. Raise UserError for any other value."""
    if value is None and name in UNSAID:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    _check(isinstance(value, int) and not isinstance(value, bool), f"{name} must be a whole number", repr(value))
    return value


def _checked_bias(bias: object) -> dict[int, float]:
    """Return a bias with ids as ints: in JSON they are strings. Raise UserError if it is invalid."""
    _check(isinstance(bias, Mapping), "logit_bias must map token ids to numbers", type(bias).__name__)
    assert isinstance(bias, Mapping)
    checked: dict[int, float] = {}
    for token_id, value in bias.items():
        if isinstance(token_id, str) and re.fullmatch(r"[0-9]{1,10}", token_id):
            token_id = int(token_id)
        is_id = isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0
        _check(is_id, "logit_bias: a token id must be a whole number of at least 0", repr(token_id)[:40])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _check(is_number and -100 <= value <= 100, f"logit_bias of {token_id} must be in -100..100", repr(value)[:40])
        checked[token_id] = float(value)
    return checked


def _checked_ids(ids: object) -> tuple[int, ...]:
    is_list = isinstance(ids, Sequence) and not isinstance(ids, str | bytes)
    _check(is_list, "no_repeat_ngram_allowed must be a list of token ids", type(ids).__name__)
    assert isinstance(ids, Sequence)
    for token_id in ids:
        is_id = isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0
        _check(is_id, "no_repeat_ngram_allowed: a token id must be a whole number of at least 0", repr(token_id)[:40])
    return tuple(ids)


def _check(holds: bool, rule: str, given: object) -> None:
    if not holds:
        raise UserError(f"{rule}, got {given}")


def penalize_repetition(logits_V: Tensor, seen_ids: Collection[int], penalty: float) -> Tensor:
    """Divide the positive logits of seen ids by the penalty and multiply the negative by it. Each id counts once."""
    index = torch.tensor(sorted(set(seen_ids)), dtype=torch.int64, device=logits_V.device)
    # In float32 a penalty near the ends of its range would give infinity, and later the difference of two would be NaN.
    seen = logits_V[index].cpu().double()
    bounds = torch.finfo(logits_V.dtype)
    changed = torch.where(seen < 0, seen * penalty, seen / penalty).clamp(bounds.min, bounds.max)
    return logits_V.index_copy(0, index, changed.to(logits_V))


def penalize_generated(logits_V: Tensor, new_ids: Sequence[int], *, frequency: float, presence: float) -> Tensor:
    """Lower the logit of each generated id by its count times `frequency`, and once by `presence`.

    This is the definition in OpenAI's API guide "Advanced usage". The prompt's ids do not count.
    """
    if not new_ids:
        return logits_V
    counts = Counter(new_ids)
    index = torch.tensor(list(counts), device=logits_V.device)
    count = torch.tensor(list(counts.values()), dtype=logits_V.dtype, device=logits_V.device)
    return logits_V.index_add(0, index, -(count * frequency + presence))


def add_bias(logits_V: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add a number to the logits of some ids."""
    index = torch.tensor(list(bias), device=logits_V.device)
    value = torch.tensor(list(bias.values()), dtype=logits_V.dtype, device=logits_V.device)
    return logits_V.index_add(0, index, value)


def keep_top_k(logits_V: Tensor, k: int) -> Tensor:
    """Keep the k largest logits and those equal to the k-th; set the others to -inf."""
    smallest = logits_V.topk(min(k, len(logits_V))).values[-1]
    return logits_V.masked_fill(logits_V < smallest, NEVER)


def keep_top_p(logits_V: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely ids whose probabilities sum to at least p. The likeliest id is always kept."""
    sorted_logits, order = logits_V.sort(descending=True, stable=True)
    probability = sorted_logits.softmax(dim=-1)
    is_dropped = probability.cumsum(dim=-1) - probability >= p  # the sum before this id already reaches p
    is_dropped[0] = False  # a p below the smallest float32 becomes 0 in the comparison, and would drop all ids
    return logits_V.masked_fill(is_dropped.scatter(0, order, is_dropped), NEVER)


def keep_min_p(logits_V: Tensor, min_p: float) -> Tensor:
    """Keep ids at least `min_p` times as likely as the likeliest."""
    probability = logits_V.softmax(dim=-1)
    return logits_V.masked_fill(probability < min_p * probability.max(), NEVER)


def choose_token(
    logits_V: Tensor,
    options: GenerateOptions,
    *,
    seen_ids: Collection[int],
    new_ids: Sequence[int],
    generator: torch.Generator,
    prompt_ids: Sequence[int] = (),
    allowed_V: Tensor | None = None,
) -> int:
    """Return the next id.

    `seen_ids` are the ids of prompt and answer, `new_ids` those of the answer. `prompt_ids` are the last ids of the
    prompt, as many as the window of the n-gram guard needs. `allowed_V` is the mask of a constraint; if the n-gram
    guard bans every id that it allows, the guard is ignored. The generator advances by one draw unless decoding is
    greedy.
    """
    if options.logit_bias:
        logits_V = add_bias(logits_V, options.logit_bias)
    if options.repetition_penalty != 1.0:
        logits_V = penalize_repetition(logits_V, seen_ids, options.repetition_penalty)
    if options.frequency_penalty or options.presence_penalty:
        logits_V = penalize_generated(
            logits_V, new_ids, frequency=options.frequency_penalty, presence=options.presence_penalty
        )
    if allowed_V is not None:
        logits_V = keep_allowed(logits_V, allowed_V)
    if options.no_repeat_ngram_size:
        ids = guarded_ids(prompt_ids, new_ids, options.no_repeat_ngram_window)
        guarded_V = ban_repeated_ngrams(logits_V, ids, options.no_repeat_ngram_size, options.no_repeat_ngram_allowed)
        logits_V = guarded_V if allowed_V is None or bool((guarded_V > NEVER).any()) else logits_V
    if options.temperature < LEAST_TEMPERATURE:
        return int(logits_V.argmax())
    # Draw on the CPU, so that the same seed gives the same draw on every device.
    logits_V = (logits_V - logits_V.max()).cpu() / min(options.temperature, MOST_TEMPERATURE)
    if options.top_k:
        logits_V = keep_top_k(logits_V, options.top_k)
    if options.top_p < 1:
        logits_V = keep_top_p(logits_V, options.top_p)
    if options.min_p:
        logits_V = keep_min_p(logits_V, options.min_p)
    return int(torch.multinomial(logits_V.softmax(dim=-1), 1, generator=generator))
