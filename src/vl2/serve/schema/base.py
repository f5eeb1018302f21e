"""Parts that the request bodies share: strict types, ignored and refused fields, sampling, answer formats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vl2.infer.constraint import Constraint, JsonSchema
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.sampling import GenerateOptions
from vl2.serve.api_errors import ApiError
from vl2.serve.ignored import IgnoredUnless


class Strict(BaseModel):
    """A model without type conversions (a string is not a number), in which an unknown field is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Lenient(Strict):
    """A model with strict types in which unknown fields are kept, so that `ignored_fields` can name them."""

    model_config = ConfigDict(extra="allow")


def _ignored(*harmless: Any) -> IgnoredUnless:
    return IgnoredUnless(lambda body, value: value in (None, *harmless))


def _only(*harmless: Any) -> AfterValidator:
    def check(value: Any) -> Any:
        # Types are compared too, because in Python True equals 1 and False equals 0.
        if not any(value == allowed and type(value) is type(allowed) for allowed in (None, *harmless)):
            raise ValueError("this is not supported here; leave it out")
        return value

    return AfterValidator(check)


def _check_modalities(value: Any) -> Any:
    if value not in (None, [], ["text"]):
        raise ValueError("the model answers in text only")
    return value


def _check_function_call(value: Any) -> Any:
    """Refuse the older form of a choice if it requires a call of a certain function."""
    if value not in (None, "none", "auto"):
        raise ValueError("the older form of calls is not supported: use tools and tool_choice")
    return value


def _calls_none(body: Any, value: Any) -> bool:
    return value in (None, []) or getattr(body, "function_call", None) == "none"


# Accepted without effect, because these concern billing, caching, storage or speed, not the answer.
WithoutEffect = Annotated[Any, Field(default=None)]
# Refused unless the value is neutral, because without support the answer would not be what the client wants.
Unsupported = Annotated[Any, _only(False, "", [], {}, 0, "none"), Field(default=None)]
OnlyZero = Annotated[Any, _only(0, False, []), Field(default=None)]
OnlyOne = Annotated[Any, _only(1), Field(default=None)]
TextOnly = Annotated[list[str] | None, AfterValidator(_check_modalities), Field(default=None)]
NoFunctionCall = Annotated[Any, AfterValidator(_check_function_call), Field(default=None)]
# Ignored, and named in a header of the response.
Ignored = Annotated[Any, _ignored(), Field(default=None)]
Functions = Annotated[Any, IgnoredUnless(_calls_none), Field(default=None)]
Effort = Annotated[Any, _ignored("none"), Field(default=None)]
Verbosity = Annotated[Any, _ignored("medium"), Field(default=None)]

Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
# These have OpenAI's limits; they are only echoed or ignored.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
ShortText = Annotated[str, Field(max_length=512)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = StopText | Annotated[list[StopText], Field(max_length=16)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=4096, description="token ids as strings, with the values to add to their logits"),
]


class Sampling(Lenient):
    """The sampling options of an answer. By default decoding is greedy."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = False
    user: ShortText | None = None
    # Additions to OpenAI's fields.
    top_k: Annotated[int, Field(ge=-1, le=1_000_000, description="0 or -1 (as in vLLM): off")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100, description="None: as the model was released")] | None = (
        None
    )
    no_repeat_ngram_window: Annotated[int, Field(ge=0, le=100_000)] | None = None
    no_repeat_ngram_allowed: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1000)] | None = None
    max_repeats: Annotated[int, Field(ge=0, le=1000)] | None = None
    speculation: Annotated[bool, Field(description="guess tokens and check them; it changes the time alone")] | None = (
        None
    )
    # Fields of vLLM that are not supported, so they are refused unless neutral.
    min_tokens: OnlyZero
    ignore_eos: OnlyZero
    stop_token_ids: OnlyZero
    bad_words: OnlyZero
    use_beam_search: OnlyZero
    allowed_token_ids: OnlyZero
    include_stop_str_in_output: OnlyZero
    structured_outputs: Unsupported
    guided_json: Unsupported
    guided_regex: Unsupported
    guided_choice: Unsupported
    guided_grammar: Unsupported

    def options(
        self,
        *,
        max_tokens: int,
        stop: Stop | None = None,
        constraint: Constraint | None = None,
        choice: int = 0,
        prediction: str = "",
    ) -> GenerateOptions:
        """Return the options of one choice. Each choice of a request gets its own seed."""
        seed = self.seed
        if seed is not None and choice:
            seed = (seed + choice + 2**63) % 2**64 - 2**63
        return GenerateOptions(
            max_new_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self.logit_bias or {},  # type: ignore[arg-type]  # ids as JSON has them
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            no_repeat_ngram_window=self.no_repeat_ngram_window or 0,
            no_repeat_ngram_allowed=self.no_repeat_ngram_allowed or (),
            max_repeats=self.max_repeats or 0,
            stop=() if stop is None else stop,
            seed=seed,
            constraint=constraint,
            prediction=prediction,
            speculation=self.speculation is not False,
        )


class ConversationRequest(Sampling):
    """Fields that chat completions and Responses share."""

    # An addition to OpenAI's fields: constrained decoding guarantees well-formed `<|det|>` lists.
    well_formed_boxes: bool | None = False
    metadata: Metadata | None = None
    store: WithoutEffect
    service_tier: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: WithoutEffect
    parallel_tool_calls: bool | None = True


class StreamOptions(Lenient):
    include_usage: bool | None = False
    include_obfuscation: WithoutEffect
    continuous_usage_stats: Annotated[Any, _ignored(False), Field(default=None)]


class PlainText(Lenient):
    type: Literal["text"]


class JsonObject(Lenient):
    type: Literal["json_object"]


class NamedSchema(Lenient):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    name: Name
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None  # without effect: the schema is always enforced


class JsonSchemaFormat(Lenient):
    """The JSON schema format of chat completions."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatJsonSchemaFormat(NamedSchema):
    """The JSON schema format of Responses."""

    type: Literal["json_schema"]


ChatFormat = Annotated[PlainText | JsonObject | JsonSchemaFormat, Field(discriminator="type")]
ResponsesFormat = Annotated[PlainText | JsonObject | FlatJsonSchemaFormat, Field(discriminator="type")]


def constraint_of(
    form: PlainText | JsonObject | JsonSchemaFormat | FlatJsonSchemaFormat | None, *, well_formed_boxes: bool
) -> Constraint | None:
    """Return the constraint of an answer format, whose grammar is not checked yet.

    Raise UserError if a schema is no object, or is too deep or too long.
    """
    schema: dict[str, Any] | None = None
    if isinstance(form, JsonObject):
        schema = {"type": "object"}
    elif isinstance(form, JsonSchemaFormat):
        schema = form.json_schema.schema_
    elif isinstance(form, FlatJsonSchemaFormat):
        schema = form.schema_
    if schema is not None and well_formed_boxes:
        raise ApiError(400, "well_formed_boxes cannot be combined with a JSON format", param="well_formed_boxes")
    if schema is not None:
        return JsonSchema(schema, is_checked=False)
    return WellFormedBoxes() if well_formed_boxes else None
