"""The bodies of `/tokenize` and `/detokenize`, in vLLM's form."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from vl2.process.conversation import Turn
from vl2.serve.schema.base import Lenient, Name, Tools
from vl2.serve.schema.chat import ChatMessage, read_history
from vl2.serve.schema.completion import TokenId
from vl2.serve.schema.parts import Source, Text
from vl2.serve.schema.turns import order_turns


class TokenizeRequest(Lenient):
    """Either a raw prompt, as completions take it, or messages, as chat completions take them."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    # Beside vLLM's: each `<image>` in the prompt stands for the next of these.
    images: list[Source] | None = None
    add_special_tokens: Annotated[
        bool | None, Field(description="of a prompt: the token of its beginning; a conversation always has it")
    ] = None
    return_token_strs: bool | None = None
    tools: Tools

    @model_validator(mode="after")
    def _check_what(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages must be given")
        return self

    def turns(self) -> list[Turn]:
        """Return the conversation in the template's order."""
        return order_turns(read_history(self.messages or ()))


class DetokenizeRequest(Lenient):
    model: Name | None = None
    tokens: list[TokenId]
