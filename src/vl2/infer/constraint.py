"""Constrained decoding: which token ids may come next, and answers that follow a JSON schema (library: llguidance).

A `Constraint` is a value in the options of a request; `start` makes the state of one answer. The sampler asks the
state for a mask before each draw and tells it the id after. Without a constraint nothing here runs.

V is the number of ids of the tokenizer; a model may have more logits, which are then never allowed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.process.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


NEVER = float("-inf")


class ConstraintState(Protocol):
    """Where one answer stands. Not shared between answers or threads."""

    @property
    def num_to_finish(self) -> int:
        """Return how many more tokens are always enough to end properly; 0 where the answer may be cut here."""

    def allowed(self, num_left: int) -> Tensor:
        """Return bool [V], True for at least one id. `num_left` tokens may still come, this one included."""

    def advance(self, token_id: int) -> None:
        """Take the id that was chosen, one of those allowed. The end token is never passed."""


class Constraint(Protocol):
    """What every answer of a request must look like."""

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> ConstraintState:
        """Begin one answer. UserError if so many tokens can hold none."""


def keep_allowed(logits_V: Tensor, allowed_V: Tensor) -> Tensor:
    """Forbid every id that is not allowed, and the ids that the tokenizer does not have."""
    missing = len(logits_V) - len(allowed_V)
    if missing > 0:
        allowed_V = torch.cat([allowed_V, allowed_V.new_zeros(missing)])
    return logits_V.masked_fill(~allowed_V[: len(logits_V)].to(logits_V.device), NEVER)


MAX_SCHEMA_CHARS = 100_000
MAX_SCHEMA_DEPTH = 64
# One blank at most where JSON allows any number: a small model would otherwise fill its answer with them.
JSON_STYLE: Any = {"whitespace_flexible": True, "whitespace_pattern": "[ ]?"}


class JsonSchema:
    """The answer is one JSON value that a schema accepts. `JsonSchema({"type": "object"})`: any object.

    UserError for a schema that is wrong, that uses a keyword which cannot be held to (`not`, `if`), or that points
    to another document. Nothing is ever fetched.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        llguidance = _library()
        if not isinstance(schema, Mapping):
            raise UserError(f"a JSON schema must be an object, got {type(schema).__name__}")
        if _depth(schema) > MAX_SCHEMA_DEPTH:
            raise UserError(f"the JSON schema is nested more than {MAX_SCHEMA_DEPTH} deep")
        try:
            self.text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"the JSON schema is not JSON: {error}") from None
        if len(self.text) > MAX_SCHEMA_CHARS:
            raise UserError(f"the JSON schema must have at most {MAX_SCHEMA_CHARS} characters, got {len(self.text)}")
        self._grammar: str = llguidance.LLMatcher.grammar_from_json_schema(self.text, overrides=JSON_STYLE)
        _check(llguidance.LLMatcher.validate_grammar(self._grammar))

    def __repr__(self) -> str:
        return f"JsonSchema({self.text})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonSchema) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> JsonState:
        del max_new_tokens  # an answer that is cut off ends for "length", as without a schema
        matcher = _library().LLMatcher(_tokenizer(tokenizer), self._grammar, log_level=0)
        _check(matcher.get_error())
        return JsonState(matcher)


def check_whole(constraint: Constraint | None, text: str, finish_reason: str, num_tokens: int) -> None:
    """Raise UserError for an answer that was to be JSON and was cut off: half an object is of no use to a program."""
    if not isinstance(constraint, JsonSchema) or finish_reason == "cancelled":
        return
    try:
        value = json.loads(text)
    except ValueError:
        is_whole = False
    else:  # of a number nobody knows whether more digits were to come
        is_whole = finish_reason == "stop" or isinstance(value, dict | list | str)
    if is_whole:
        return
    ended = {
        "length": "was cut off: a larger max_new_tokens, or context, allows more",
        "repetition": "was ended because it repeated itself: bound the strings and lists of the schema",
    }.get(finish_reason, "was ended by a stop text before it was whole")
    raise UserError(f"the JSON answer of {num_tokens} tokens {ended}")


class JsonState:
    """Where one answer stands in the grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    num_to_finish = 0  # a schema may ask for any number of tokens still: what is cut is cut anywhere

    def allowed(self, num_left: int) -> Tensor:
        """Return bool [V]. UserError if the schema is too complex to be followed further."""
        del num_left
        mask = self._matcher.compute_logit_bias()
        _check(self._matcher.get_error())
        return torch.frombuffer(bytearray(mask), dtype=torch.uint8) != 0

    def advance(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        _check(self._matcher.get_error())


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError(f"answers by a JSON schema need llguidance: {install_extra('constrain')}") from None
    return llguidance


def _check(error: str) -> None:
    if error and not error.startswith("WARNING"):
        raise UserError(f"the JSON schema cannot be followed: {' '.join(error.split())[:200]}")


def _depth(value: object) -> int:
    """Return how deep lists and objects are nested, counted without recursion and at most one past the limit."""
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        level = [
            child
            for item in level
            if isinstance(item, (Mapping, list, tuple))
            for child in (item.values() if isinstance(item, Mapping) else item)
        ]
        depth += 1
    return depth


def prepare_json(tokenizer: Tokenizer) -> None:
    """Build now what the first schema would build. Nothing without the library."""
    if importlib.util.find_spec("llguidance") is not None:
        _tokenizer(tokenizer)


@lru_cache(maxsize=4)
def _tokenizer(tokenizer: Tokenizer) -> LLTokenizer:
    """Build the library's view of a vocabulary, once: a second for the large ones."""
    made: LLTokenizer = _library().LLTokenizer(
        tokenizer.to_json(), n_vocab=tokenizer.num_ids, eos_token=tokenizer.eos_id
    )
    return made
