"""A client for OpenAI-compatible endpoints: parallel requests, a rate limit, and retries after temporary errors.

The API key comes from an environment variable and is sent in one header. It never appears in messages, files or logs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vl2.errors import UserError
from vl2.optional_imports import install_extra

if TYPE_CHECKING:
    import httpx


_IMAGE_TOKENS = 800  # an estimate for the rate limit, corrected by the usage that the response reports
_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True, kw_only=True)
class SentImage:
    """An image as a data URL, and the hash of the stored file.

    Cache keys use the hash of the file, because the bytes of a re-encoded image depend on the encoder's version.
    """

    digest: str
    url: str


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request of one user turn with an optional system prompt. Images precede the text."""

    text: str
    system: str = ""
    images: tuple[SentImage, ...] = ()
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0

    def key(self, model: str) -> str:
        """Return the cache key of the request to a model: a hash of everything that the answer depends on."""
        fields = (model, self.system, self.text, [image.digest for image in self.images])
        settings = (self.max_tokens, self.temperature, self.seed)
        return hashlib.sha256(json.dumps([*fields, *settings]).encode()).hexdigest()

    def to_json(self, model: str) -> dict[str, Any]:
        """Return the JSON body of the request."""
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
        """Return an estimate of the largest number of tokens of prompt and answer."""
        prompt = (len(self.system) + len(self.text)) // _CHARACTERS_PER_TOKEN
        return prompt + _IMAGE_TOKENS * len(self.images) + self.max_tokens


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """The answer to a request."""

    text: str
    finish_reason: str  # "stop", or "length" if it was truncated
    total_tokens: int = 0  # prompt and answer as the endpoint counts them, 0 if it does not report them

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "finish_reason": self.finish_reason, "total_tokens": self.total_tokens}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ChatAnswer:
        return cls(**values)

    @classmethod
    def from_response(cls, body: Any) -> ChatAnswer:
        """Parse the body of a response. Raise ValueError if it has another form."""
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


WINDOW_S = 60.0

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Spending:
    """An amount spent at a point in time. An estimated amount can be corrected later."""

    def __init__(self, time_s: float, amount: float) -> None:
        self.time_s = time_s
        self.amount = amount


class Window:
    """A sliding window of 60 seconds over the requests or tokens spent; a limit of None means no limit."""

    def __init__(self, limit: float | None) -> None:
        if limit is not None and limit <= 0:
            raise UserError(f"a limit per minute must be above 0, got {limit}")
        self._limit = limit
        self._spent: deque[Spending] = deque()

    def wait_s(self, now: float, amount: float) -> float:
        """Return the seconds until the amount may be spent; 0 means now.

        An amount above the limit has to wait until the window is empty.
        """
        while self._spent and self._spent[0].time_s <= now - WINDOW_S:
            self._spent.popleft()
        if self._limit is None:
            return 0.0
        over = sum(spending.amount for spending in self._spent) + amount - self._limit
        wait_s = 0.0
        for spending in self._spent:
            if over <= 0:
                break
            over -= spending.amount
            wait_s = spending.time_s + WINDOW_S - now
        return wait_s

    def spend(self, now: float, amount: float) -> Spending:
        spending = Spending(now, amount)
        if self._limit is not None:
            self._spent.append(spending)
        return spending


class RateLimit:
    """A rate limit on requests and tokens per minute. Both are counted when a request is sent."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._requests = Window(requests_per_minute)
        self._tokens = Window(tokens_per_minute)
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()

    async def take(self, tokens: float) -> Spending:
        """Wait until a request with this many tokens may be sent. Return the spending, to be corrected later."""
        async with self._turn:  # held while waiting, so that requests are sent in order of arrival
            while (wait_s := self._wait_s(tokens)) > 0:
                await self._sleep(wait_s)
            self._requests.spend(self._clock(), 1)
            return self._tokens.spend(self._clock(), tokens)

    def _wait_s(self, tokens: float) -> float:
        now = self._clock()
        return max(self._requests.wait_s(now, 1), self._tokens.wait_s(now, tokens))


_RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
# These affect all requests: the address, the key or the model is wrong.
_FATAL = frozenset({401, 403, 404, 405})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_LONGEST_RETRY_AFTER_S = 600.0


class RequestFailed(Exception):
    """A single request failed; other requests may succeed. The message is a one-line reason."""


class Stopped(Exception):
    """The request was not sent because the run is stopping."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The address and model of an endpoint, and the limits on its use."""

    base_url: str  # up to and including /v1
    model: str
    key_variable: str = "OPENAI_API_KEY"  # the environment variable with the key; unset if no key is needed
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0
    tries: int = 6

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"base_url must be like http://127.0.0.1:8000/v1, got {self.base_url!r:.80}")
        if parts.username or parts.password or parts.query:
            raise UserError(f"base_url must not have credentials or a query: set {self.key_variable} instead")
        if not self.model:
            raise UserError("model must not be empty")
        if self.concurrency < 1 or self.tries < 1 or self.timeout_s <= 0:
            raise UserError(
                f"concurrency and tries must be at least 1 and timeout_s above 0, "
                f"got {self.concurrency}, {self.tries} and {self.timeout_s}"
            )


@dataclass(kw_only=True)
class _Response:
    """The result of one attempt: an answer, or the reason for the failure and the requested delay."""

    answer: ChatAnswer | None = None
    why: str = ""
    retry_after_s: float = 0.0


@dataclass(kw_only=True)
class Client:
    """An open connection to an endpoint. Tests replace `clock` and `sleep`."""

    endpoint: Endpoint
    clock: Clock = time.monotonic
    sleep: Sleep = asyncio.sleep
    jitter: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._http = _open_http(self.endpoint)
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        limits = self.endpoint.requests_per_minute, self.endpoint.tokens_per_minute
        self._limit = RateLimit(*limits, self.clock, self._pause)
        self.stopped = asyncio.Event()
        self._resume_at_s = 0.0  # a Retry-After response delays all requests

    @property
    def stopping(self) -> bool:
        return self.stopped.is_set()

    def stop(self) -> None:
        """Send no further requests. Waiting requests raise Stopped; requests in flight are still answered."""
        self.stopped.set()

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the answer to a request.

        Raise RequestFailed if this request fails, UserError if every request would fail, Stopped if `stop` was called.
        """
        async with self._slots:
            why = ""
            for number in range(self.endpoint.tries):
                if number:
                    await self._pause(self._backoff_s(number))
                response = await self._try(request)
                if response.answer is not None:
                    return response.answer
                why = response.why
                self._resume_at_s = max(self._resume_at_s, self.clock() + response.retry_after_s)
            raise RequestFailed(f"no answer after {self.endpoint.tries} tries, the last: {why}")

    async def close(self) -> None:
        await self._http.aclose()

    async def _try(self, request: ChatRequest) -> _Response:
        while (wait_s := self._resume_at_s - self.clock()) > 0:
            await self._pause(wait_s)
        tokens = await self._limit.take(request.estimated_tokens())
        if self.stopping:
            raise Stopped
        response = await self._post(request)
        if response.answer is not None and response.answer.total_tokens:
            tokens.amount = response.answer.total_tokens
        return response

    async def _post(self, request: ChatRequest) -> _Response:
        import httpx

        url = f"{self.endpoint.base_url.rstrip('/')}/chat/completions"
        try:
            # httpx limits the time of each read only; this limits the time of a body that trickles in.
            posted = self._http.post(url, json=request.to_json(self.endpoint.model))
            reply = await asyncio.wait_for(posted, self.endpoint.timeout_s)
        except (httpx.TimeoutException, asyncio.TimeoutError):
            return _Response(why=f"no answer within {self.endpoint.timeout_s:g} s")
        except httpx.HTTPError as error:
            return _Response(why=_one_line(f"{type(error).__name__}: {error}"))
        return self._read(reply)

    def _read(self, reply: httpx.Response) -> _Response:
        if reply.status_code == 200:
            try:
                return _Response(answer=ChatAnswer.from_response(reply.json()))
            except ValueError as error:
                return _Response(why=_one_line(f"the response cannot be read: {error}"))
        why = f"status {reply.status_code}"
        if reply.status_code in _RETRIED:
            return _Response(why=why, retry_after_s=_retry_after_s(reply.headers.get("retry-after", "")))
        if reply.status_code in _FATAL:
            needed = f"base_url, model and the key in {self.endpoint.key_variable}"
            raise UserError(f"{self.endpoint.base_url} answers with {why}: check {needed}")
        raise RequestFailed(f"{why}: {self._redact_key(_one_line(reply.text))}")

    async def _pause(self, seconds: float) -> None:
        """Sleep, or raise Stopped as soon as the run is stopping."""
        ends = [asyncio.ensure_future(self.sleep(seconds)), asyncio.ensure_future(self.stopped.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if self.stopping:
            raise Stopped

    def _backoff_s(self, number: int) -> float:
        """Return a random delay whose mean doubles with each attempt (exponential backoff with jitter)."""
        longest = min(_FIRST_WAIT_S * 2**number, _LONGEST_WAIT_S)
        return self.jitter.uniform(longest / 2, longest)

    def _redact_key(self, text: str) -> str:
        key = os.environ.get(self.endpoint.key_variable, "")
        return text.replace(key, "***") if key else text


def _open_http(endpoint: Endpoint) -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError:
        raise UserError(f"asking a model needs httpx: {install_extra('data')}") from None
    key = os.environ.get(endpoint.key_variable, "").strip()
    headers: dict[str, Any] = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=endpoint.concurrency)
    try:
        return httpx.AsyncClient(headers=headers, timeout=endpoint.timeout_s, limits=limits)
    except UnicodeEncodeError:
        raise UserError(f"the key in {endpoint.key_variable} has characters that a key cannot have") from None


def _retry_after_s(header: str) -> float:
    """Return the delay in a Retry-After header, which is a number or a date; 0 if it is missing or invalid."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        seconds = (until.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S) if seconds == seconds else 0.0


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
