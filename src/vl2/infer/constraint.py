"""Constrained decoding: the protocol of constraints, and answers that follow a JSON schema (library: llguidance).

A `Constraint` is a value in the options of a request; its `start` creates the state of one answer. Before each draw
the sampler gets a mask of the allowed ids from the state, and afterward passes it the chosen id. Without a constraint
nothing here runs.

V is the number of ids of the tokenizer. A model may have more logits; these ids are never allowed.
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
    """The state of one answer under a constraint. It must not be shared between answers or threads."""

    @property
    def num_to_finish(self) -> int:
        """Return a number of tokens that is always enough to finish properly; 0 where the answer may be cut here."""

    def allowed(self, num_left: int) -> Tensor:
        """Return the allowed ids as bool [V], True for at least one. `num_left` tokens remain, including the next."""

    def advance(self, token_id: int) -> None:
        """Update the state by the chosen id, one of the allowed ones. The end token is never passed."""

    def copy(self) -> ConstraintState:
        """Return a state that goes on from here on its own."""


class Constraint(Protocol):
    """The form that every answer of a request must have."""

    @property
    def outline(self) -> str:
        """A text with the parts that valid answers share, as a guess of what comes; "" if there are none."""

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> ConstraintState:
        """Return the state of a new answer. Raise UserError if no valid answer fits into `max_new_tokens`."""


def keep_allowed(logits_V: Tensor, allowed_V: Tensor) -> Tensor:
    """Set the logits of ids that are not allowed to -inf, and of those that the tokenizer does not have."""
    missing = len(logits_V) - len(allowed_V)
    if missing > 0:
        allowed_V = torch.cat([allowed_V, allowed_V.new_zeros(missing)])
    return logits_V.masked_fill(~allowed_V[: len(logits_V)].to(logits_V.device), NEVER)


MAX_SCHEMA_CHARS = 100_000
MAX_SCHEMA_DEPTH = 64
# JSON allows any number of blanks between tokens; allow at most one, or a small model may fill its answer with them.
JSON_STYLE: Any = {"whitespace_flexible": True, "whitespace_pattern": "[ ]?"}


# The grammars of a constraint, the whole one last. Before each stands what to put before an error in it.
Grammars = tuple[tuple[str, str], ...]


class JsonSchema:
    """The constraint that the answer is one JSON value valid under a schema; {"type": "object"} allows any object.

    Raise UserError for a schema that is invalid, that uses a keyword which cannot be enforced (`not`, `if`), or that
    refers to another document. Nothing is ever fetched.
    """

    def __init__(self, schema: Mapping[str, Any], *, is_checked: bool = True) -> None:
        """With `is_checked=False` the grammar is not checked yet: a server does that in a process with limits."""
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
        self.outline = _outline(schema)
        self._grammar: str = llguidance.LLMatcher.grammar_from_json_schema(self.text, overrides=JSON_STYLE)
        self.grammars: Grammars = (("", self._grammar),)
        if is_checked:
            check_grammar(self._grammar)

    def __repr__(self) -> str:
        return f"JsonSchema({self.text})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonSchema) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> JsonState:
        del max_new_tokens  # a cut-off answer gets the finish reason "length", as without a schema
        return JsonState(start_matcher(tokenizer, self._grammar))


def check_whole(constraint: Constraint | None, text: str, finish_reason: str, num_tokens: int) -> None:
    """Raise UserError if an answer under a JsonSchema was cut off: a program cannot use half an object.

    A canceled answer passes. `num_tokens` is the length of the answer, for the message.
    """
    if not isinstance(constraint, JsonSchema) or finish_reason == "cancelled":
        return
    try:
        value = json.loads(text)
    except ValueError:
        is_whole = False
    else:  # a number may have been cut off between two digits, so it is whole only after a normal stop
        is_whole = finish_reason == "stop" or isinstance(value, dict | list | str)
    if is_whole:
        return
    ended = {
        "length": "was cut off: a larger max_new_tokens, or context, allows more",
        "repetition": "was ended because it repeated itself: bound the strings and lists of the schema",
    }.get(finish_reason, "was ended by a stop text before it was whole")
    raise UserError(f"the JSON answer of {num_tokens} tokens {ended}")


class JsonState:
    """The state of one answer in the grammar of its schema."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    num_to_finish = 0  # no number of tokens is always enough for a schema, so an answer may be cut anywhere

    def allowed(self, num_left: int) -> Tensor:
        """Return the allowed ids as bool [V]. Raise UserError if the schema is too complex to be followed further."""
        del num_left
        mask = self._matcher.compute_logit_bias()
        raise_error(self._matcher.get_error())
        return torch.frombuffer(bytearray(mask), dtype=torch.uint8) != 0

    def advance(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        raise_error(self._matcher.get_error())

    def copy(self) -> JsonState:
        return JsonState(self._matcher.deep_copy())


MAX_OUTLINE_PARTS = 200  # a schema whose parts refer to one another would have an endless outline


def _outline(schema: Mapping[str, Any]) -> str:
    """Return an object or list with the keys of a schema, in its order, or "" where it is of another kind."""
    text = json.dumps(_Outline(schema).of(schema), ensure_ascii=False)
    return text if text[0] in "{[" else ""


class _Outline:
    """Makes a value of the form of a schema, as far as a number of parts goes."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root, self._num_left = root, MAX_OUTLINE_PARTS

    def of(self, schema: object) -> object:
        self._num_left -= 1
        if not isinstance(schema, Mapping) or self._num_left < 0:
            return ""
        if isinstance(reference := schema.get("$ref"), str):
            return self.of(self._find(reference))
        if isinstance(properties := schema.get("properties"), Mapping):
            return {str(key): self.of(value) for key, value in properties.items()}
        kind = schema.get("type")
        if kind == "array":
            return [self.of(schema.get("items"))]
        return 0 if kind in ("integer", "number") else kind == "boolean" or ""

    def _find(self, reference: str) -> object:
        found: object = self._root
        for key in reference.removeprefix("#/").split("/"):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError(f"answers by a JSON schema need llguidance: {install_extra('constrain')}") from None
    return llguidance


def raise_error(error: str, head: str = "") -> None:
    """Raise UserError for an error of llguidance about a grammar. None is "", and a warning is none either."""
    if error and not error.startswith("WARNING"):
        raise UserError(f"{head}the JSON schema cannot be followed: {' '.join(error.split())[:200]}")


def check_grammar(grammar: str) -> None:
    """Raise UserError if a grammar of llguidance, from a schema or in Lark's syntax, cannot be followed."""
    raise_error(_library().LLMatcher.validate_grammar(grammar))


def start_matcher(tokenizer: Tokenizer, grammar: str) -> LLMatcher:
    """Return the state of an answer that has not begun. Raise UserError if the grammar is too large.

    The grammar is compiled the first time, and kept. For 128 functions that takes a tenth of a second.
    """
    return _matcher(tokenizer, grammar).deep_copy()


@lru_cache(maxsize=8)
def _matcher(tokenizer: Tokenizer, grammar: str) -> LLMatcher:
    matcher: LLMatcher = _library().LLMatcher(llguidance_tokenizer(tokenizer), grammar, log_level=0)
    raise_error(matcher.get_error())
    return matcher


def close_schema(schema: object) -> object:
    """Forbid properties beside the named ones in every object of a schema that says nothing about them.

    A model that is lost would add properties forever.
    """
    if isinstance(schema, list):
        return [close_schema(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    # The parts of allOf describe one object together, so none of them may forbid what another names.
    closed = {str(key): part if key == "allOf" else close_schema(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), Mapping) and "allOf" not in schema and "type" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _depth(value: object) -> int:
    """Return the nesting depth of lists and objects, counted without recursion, at most one past MAX_SCHEMA_DEPTH."""
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
    """Build in advance what the first JsonSchema would build. Do nothing if llguidance is not installed."""
    if importlib.util.find_spec("llguidance") is not None:
        llguidance_tokenizer(tokenizer)


@lru_cache(maxsize=4)
def llguidance_tokenizer(tokenizer: Tokenizer) -> LLTokenizer:
    """Return llguidance's tokenizer for a vocabulary. It is cached: building a large one takes about a second."""
    made: LLTokenizer = _library().LLTokenizer(
        tokenizer.to_json(), n_vocab=tokenizer.num_ids, eos_token=tokenizer.eos_id
    )
    return made
