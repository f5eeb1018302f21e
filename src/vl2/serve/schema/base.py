"""What the requests of all endpoints share: strict types, no unknown field, sampling, and the model's name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vl2.infer.constraint import Constraint
from vl2.infer.sampling import GenerateOptions


class Strict(BaseModel):
    """A number is not taken from a string, nor a truth value from a number; a field that is not known is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def _refuse_unless_unset(value: Any) -> Any:
    if value not in (None, [], {}, 0, "none"):
        raise ValueError("this is not supported here; leave it out")
    return value


def _refuse_unless_text(value: list[str] | None) -> list[str] | None:
    if value not in (None, ["text"]):
        raise ValueError("this model answers in text only")
    return value


Unsupported = Annotated[Any, AfterValidator(_refuse_unless_unset), Field(default=None)]
TextOnly = Annotated[list[str] | None, AfterValidator(_refuse_unless_text), Field(default=None)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
# As OpenAI bounds them: what is only echoed or passed over need not be long.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
ShortText = Annotated[str, Field(max_length=512)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = StopText | Annotated[list[StopText], Field(max_length=16)]


class Sampling(Strict):
    """The options that decide how an answer is drawn. Where nothing is said the likeliest token is taken."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = False
    user: ShortText | None = None
    # Beside OpenAI's.
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None
    max_repeats: Annotated[int, Field(ge=0, le=1000)] | None = None

    def options(
        self, *, max_tokens: int, stop: Stop | None = None, constraint: Constraint | None = None, choice: int = 0
    ) -> GenerateOptions:
        """Return how one of several choices is drawn: each from a seed of its own."""
        seed = self.seed
        if seed is not None and choice:
            seed = (seed + choice + 2**63) % 2**64 - 2**63
        return GenerateOptions(
            max_new_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size or 0,
            max_repeats=self.max_repeats or 0,
            stop=() if stop is None else stop,
            seed=seed,
            constraint=constraint,
        )


class StreamOptions(Strict):
    include_usage: bool | None = False
    include_obfuscation: bool | None = None  # without effect here
