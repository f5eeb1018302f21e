"""The body of `/v1/completions`: raw prompts, without the chat template."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vl2.serve.schema.base import Count, Sampling, Stop, StreamOptions, Unsupported
from vl2.serve.schema.chat import Source, Text


class CompletionRequest(Sampling):
    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    # Beside OpenAI's: each `<image>` in the prompt stands for the next of these.
    images: list[Source] | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stop | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Unsupported
    best_of: Unsupported
    suffix: Unsupported
    frequency_penalty: Unsupported
    logit_bias: Unsupported
    presence_penalty: Unsupported
