"""The client: limits hold, what passes by itself is tried again, and the key is nowhere to be seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from tests.curate.jobs.fake_endpoint import FakeEndpoint, Reply
from vl2.curate.jobs.client import (
    ChatAnswer,
    ChatRequest,
    Client,
    Endpoint,
    RateLimit,
    RequestFailed,
    SentImage,
    Stopped,
)
from vl2.errors import UserError

pytest.importorskip("httpx")
KEY = "sk-very-secret-0123456789"
ASK = ChatRequest(text="Hello?", max_tokens=8)


class FakeTime:
    """A clock that only sleeping moves, to the earliest sleeper's end."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept_s: list[float] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        end_s = self.now_s + seconds
        for _ in range(20):
            await asyncio.sleep(0)  # others may start, or sleep less
        self.now_s = max(self.now_s, end_s)


def with_client(url: str, use: Callable[[Client], Awaitable[Any]], time: FakeTime, **settings: Any) -> Any:
    async def run() -> Any:
        endpoint = Endpoint(base_url=url, model="fake", key_variable="FAKE_KEY", **settings)
        client = Client(endpoint=endpoint, clock=time.clock, sleep=time.sleep, jitter=random.Random(0))
        try:
            return await use(client)
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.mark.parametrize(("requests", "tokens", "expected"), [(10, None, 10), (None, 1000, 10), (7, 10_000, 7)])
def test_no_minute_holds_more_than_the_limit(requests: float | None, tokens: float | None, expected: int) -> None:
    time = FakeTime()
    sent_s: list[float] = []

    async def one(limit: RateLimit) -> None:
        await limit.take(100)
        sent_s.append(time.now_s)

    async def run() -> None:
        limit = RateLimit(requests, tokens, time.clock, time.sleep)
        await asyncio.gather(*(one(limit) for _ in range(35)))

    asyncio.run(run())
    assert len(sent_s) == 35
    busiest = max(sum(start <= at < start + 60 for at in sent_s) for start in sent_s)
    assert busiest == expected
    assert max(sent_s) - min(sent_s) <= 60 * (35 // expected) + 1  # nor does it wait for nothing


def test_one_request_above_the_limit_goes_alone_and_usage_puts_estimates_right() -> None:
    time = FakeTime()

    async def run() -> list[float]:
        limit = RateLimit(None, 100, time.clock, time.sleep)
        moments = []
        for amount in (500, 500):
            spending = await limit.take(amount)
            moments.append(time.now_s)
        spending.amount = 10
        await limit.take(90)
        return [*moments, time.now_s]

    assert asyncio.run(run()) == [1000, 1060, 1060]


def test_the_limits_hold_against_an_endpoint() -> None:
    time = FakeTime()
    with FakeEndpoint(lambda body, number: Reply(after_s=0.01)) as fake:

        async def use(client: Client) -> list[ChatAnswer]:
            return await asyncio.gather(*(client.ask(ChatRequest(text=str(n), max_tokens=8)) for n in range(12)))

        answers = with_client(fake.url, use, time, concurrency=3, requests_per_minute=5)
    assert [answer.text for answer in answers] == ["7"] * 12
    assert fake.most_under_way <= 3
    assert time.now_s >= 1120  # 12 requests at 5 a minute start in the third minute


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=429),
        Reply(status=500),
        Reply(status=503, raw=b"<html>"),
        Reply(raw=b"not json"),
        Reply(raw=b'{"choices": []}'),
        Reply(raw=b'{"choices": [{"message": {"content": null}}]}'),
        Reply(after_s=0.6),
    ],
)
def test_what_passes_by_itself_is_tried_again(bad: Reply) -> None:
    time = FakeTime()
    with FakeEndpoint(lambda body, number: bad if number < 3 else Reply(text="good")) as fake:
        answer = with_client(fake.url, lambda client: client.ask(ASK), time, timeout_s=0.3)
    assert answer == ChatAnswer(text="good", finish_reason="stop", total_tokens=10)
    assert fake.requests == 3
    assert 1 <= time.slept_s[0] <= 2 <= time.slept_s[1] <= 4


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_holds_back_every_request(as_date: bool) -> None:
    time = FakeTime()
    until = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=300), usegmt=True)
    wait = {"retry-after": until if as_date else "300"}
    with FakeEndpoint(lambda body, number: Reply(status=429, headers=wait) if fake.requests == 1 else Reply()) as fake:

        async def use(client: Client) -> None:
            await client.ask(ASK)
            assert time.now_s >= 1290

        with_client(fake.url, use, time)
    assert fake.requests == 2


def test_a_request_that_never_works_fails_alone_and_says_why() -> None:
    for reply, why in (
        (Reply(status=500), "no answer after 3 tries, the last: status 500"),
        (Reply(status=400, raw=f"the image is\n too large for {KEY}".encode()), "status 400: the image is too large"),
    ):
        with FakeEndpoint(lambda body, number, reply=reply: reply) as fake, pytest.raises(RequestFailed, match=why):
            with_client(fake.url, lambda client: client.ask(ASK), FakeTime(), tries=3)
    with pytest.raises(RequestFailed, match="ConnectError"):
        with_client(fake.url, lambda client: client.ask(ASK), FakeTime(), tries=2)


def test_a_wrong_key_or_model_ends_the_run_in_one_line() -> None:
    for status in (401, 403, 404):
        reply = Reply(status=status, raw=KEY.encode())
        with FakeEndpoint(lambda body, number, reply=reply: reply) as fake, pytest.raises(UserError) as caught:
            with_client(fake.url, lambda client: client.ask(ASK), FakeTime())
        assert f"status {status}: check base_url, model and the key in FAKE_KEY" in str(caught.value)
        assert fake.requests == 1


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    caplog.set_level("DEBUG")
    failing = Reply(status=422, raw=f"Incorrect key {KEY}".encode())
    with FakeEndpoint(lambda body, number: failing) as fake, pytest.raises(RequestFailed) as caught:
        with_client(fake.url, lambda client: client.ask(ASK), FakeTime())
    assert fake.authorization == {f"Bearer {KEY}"}
    assert "Incorrect key ***" in str(caught.value)
    assert KEY not in caplog.text


def test_without_a_key_no_header_is_sent_and_when_stopping_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)

    async def use(client: Client) -> None:
        await client.ask(ASK)
        client.stop()
        with pytest.raises(Stopped):
            await client.ask(ASK)

    with FakeEndpoint(lambda body, number: Reply()) as fake:
        with_client(fake.url, use, FakeTime())
    assert fake.authorization == {None}
    assert fake.requests == 1


def test_stopping_wakes_those_who_wait_to_try_again() -> None:
    async def run(url: str) -> None:
        client = Client(endpoint=Endpoint(base_url=url, model="fake", requests_per_minute=1))
        waiting = [asyncio.create_task(client.ask(ChatRequest(text=text))) for text in "ab"]
        while not fake.requests:
            await asyncio.sleep(0.01)
        client.stop()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), timeout=30)
        assert [type(each) for each in ended] == [Stopped, Stopped]
        await client.close()

    with FakeEndpoint(lambda body, number: Reply(status=429, headers={"retry-after": "500"})) as fake:
        asyncio.run(run(fake.url))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url must be like"),
        ({"base_url": "https://me:secret@example.org/v1"}, "must not have credentials"),
        ({"model": ""}, "model must not be empty"),
        ({"concurrency": 0}, "concurrency and tries must be at least 1"),
    ],
)
def test_an_endpoint_checks_itself(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        Endpoint(**{"base_url": "http://127.0.0.1/v1", "model": "m", **settings})
    assert "secret" not in str(caught.value)


def test_a_request_is_named_by_its_content_and_not_by_how_its_image_was_encoded() -> None:
    images = [
        (SentImage(digest=digest, url=url),) for digest, url in (("a", "data:1"), ("a", "data:2"), ("b", "data:1"))
    ]
    keys = [ChatRequest(text="x", images=each).key("m") for each in images]
    assert keys[0] == keys[1] != keys[2]
    assert len({ASK.key("m"), ASK.key("n"), ChatRequest(text="Hello?", max_tokens=9).key("m")}) == 3
    body = ChatRequest(text="x", system="s", images=images[0], seed=3).to_json("m")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"][0] == {"type": "image_url", "image_url": {"url": "data:1"}}
