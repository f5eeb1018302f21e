"""What a job asks and what it is answered, in OpenAI's chat form, and the key that names a question by its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

_IMAGE_TOKENS = 800  # a guess for the rate limit, put right by the usage that the answer reports
_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True, kw_only=True)
class SentImage:
    """A picture as a data URL, and the hash of the stored file. The hash names it: encoders change, files do not."""

    digest: str
    url: str


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One user turn, after an optional system prompt. Images stand before the text."""

    text: str
    system: str = ""
    images: tuple[SentImage, ...] = ()
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0

    def key(self, model: str) -> str:
        """Return the name of the question asked of a model: equal questions have one answer."""
        fields = (model, self.system, self.text, [image.digest for image in self.images])
        settings = (self.max_tokens, self.temperature, self.seed)
        return hashlib.sha256(json.dumps([*fields, *settings]).encode()).hexdigest()

    def to_json(self, model: str) -> dict[str, Any]:
        """Return the body of the request."""
        content: Any = self.text
        if self.images:
            pictures = [{"type": "image_url", "image_url": {"url": image.url}} for image in self.images]
            content = [*pictures, {"type": "text", "text": self.text}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": model,
            "messages": [*system, {"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def estimated_tokens(self) -> int:
        """Return what the request may cost, prompt and answer."""
        prompt = (len(self.system) + len(self.text)) // _CHARACTERS_PER_TOKEN
        return prompt + _IMAGE_TOKENS * len(self.images) + self.max_tokens


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    text: str
    finish_reason: str  # "stop", or "length" if it was cut off
    total_tokens: int = 0  # prompt and answer as the endpoint counts them, 0 if it does not say

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "finish_reason": self.finish_reason, "total_tokens": self.total_tokens}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ChatAnswer:
        return cls(**values)

    @classmethod
    def from_response(cls, body: Any) -> ChatAnswer:
        """Read the body of a response. ValueError if it is not one."""
        try:
            choice = body["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
            tokens = (body.get("usage") or {}).get("total_tokens", 0)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError("the response has no choices[0].message.content") from None
        if not isinstance(text, str):
            raise ValueError("the content of the response is not a text")
        return cls(
            text=text, finish_reason=str(finish or "stop"), total_tokens=tokens if isinstance(tokens, int) else 0
        )
