"""The request body of `/v1/completions`: raw prompts without the chat template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from vl2.serve.schema.base import Count, Sampling, Stop, StreamOptions, Unsupported, WithoutEffect
from vl2.serve.schema.turns import Source, Text

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


def _explain_prompt_error(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        # One sentence covers all four forms of a prompt; pydantic's message would name only one.
        raise ValueError("must be a text, a list of token ids, or a list of either, and not empty") from None


class CompletionRequest(Sampling):
    prompt: Annotated[
        Text | TokenIds | Annotated[list[Text] | list[TokenIds], Field(min_length=1)],
        WrapValidator(_explain_prompt_error),
        Field(description="one or several prompts, each a text or a list of token ids; no bos is added to ids"),
    ]
    # An addition to OpenAI's fields: each `<image>` in the prompt stands for the next of these.
    images: list[Source] | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stop | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: WithoutEffect
    store: WithoutEffect
    echo: Unsupported
    suffix: Unsupported
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    prompt_logprobs: Unsupported

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of not in (None, 1, self.n or 1):
            raise ValueError(f"best_of must be equal to n ({self.n or 1}) or be left out: all choices are returned")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, each a text or token ids."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given
