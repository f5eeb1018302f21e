"""What one client may take of the server, who counts as one, and what is told and logged of what is refused."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from tests.web.scripted_backend import ScriptedBackend
from vl2.errors import UserError
from vl2.infer.vlm import VLM
from vl2.serve import request_guard
from vl2.serve import server as server_module
from vl2.serve.exchange import AnswerText
from vl2.serve.request_guard import client_of
from vl2.serve.server import BoundedProtocol
from vl2.serve.settings import ServerSettings

from .live_server import LiveServer, serving, wait_for
from .pictures import data_url, png, user

CHAT = "/v1/chat/completions"
HELLO = {"model": "nano", "messages": [user("Hello")]}


@pytest.fixture
def backend(nano: VLM) -> ScriptedBackend:
    return ScriptedBackend(nano.processor)


@pytest.fixture
def live(backend: ScriptedBackend) -> Iterator[LiveServer]:
    with serving(backend, ServerSettings(name="nano", max_in_flight_bytes=1_000_000)) as live:
        yield live


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [user("\u4e2d" * 100_000, "http://10.0.0.1/")]}),
        (CHAT, {"messages": [{"role": "system", "content": "x" * 100_000}, user("Hello")]}),
        (CHAT, {"messages": [user("x" * 500)] * 200}),
        ("/v1/responses", {"input": "x" * 100_000}),
        ("/v1/responses", {"input": "Hello", "instructions": "x" * 100_000}),
        ("/v1/completions", {"prompt": ["Hello", "x" * 100_000]}),
    ],
)
def test_text_that_cannot_fit_is_refused_before_anything_else(
    path: str, fields: dict[str, object], live: LiveServer, backend: ScriptedBackend
) -> None:
    answer = live.post(path, {"model": "nano", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "the text has 100" in error["message"]
    assert "the context of 4096 tokens" in error["message"]
    assert backend.requests == []


def test_blanks_around_a_message_do_not_count(live: LiveServer) -> None:
    blanks = " " * 200_000
    assert live.post(CHAT, {"model": "nano", "messages": [user(f"{blanks}Hello{blanks}")]}).status_code == 200


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("::ffff:192.0.2.7", 5), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:3::1", 5), "2001:db8:1:3::/64"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (("::1", 5), "::/64"),
        (("testclient", 5), "testclient"),
        (None, ""),
    ],
)
def test_a_client_is_an_address_or_the_network_of_one(peer: tuple[str, int] | None, client: str) -> None:
    assert client_of(peer) == client


def test_names_that_a_client_chooses_make_it_no_other(live: LiveServer, backend: ScriptedBackend) -> None:
    for number in range(3):
        headers = {"Authorization": f"Bearer {number}", "X-Forwarded-For": f"192.0.2.{number}"}
        live.post(CHAT, {**HELLO, "user": f"user {number}"}, headers=headers)
        live.post("/v1/responses", {"model": "nano", "input": "Hello", "user": f"user {number}"}, headers=headers)
        live.post("/v1/completions", {"model": "nano", "prompt": "Hello", "user": f"user {number}"}, headers=headers)
    assert len(backend.requests) == 9
    assert {request.client for request in backend.requests} == {"127.0.0.1"}


def connect(port: int, start: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(start)
    return connection


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "


def head(length: int) -> bytes:
    return HALF_A_HEAD + f"y\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("start", [b"", HALF_A_HEAD, head(1000) + b"{"])
def test_connections_that_say_nothing_make_room_for_others(
    start: bytes, live: LiveServer, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "max_connections", 24)
    backend.pause_after = 0
    asked = json.dumps(HELLO).encode()
    with ExitStack() as stack:
        under_way = stack.enter_context(connect(live.port, head(len(asked)) + asked))
        wait_for(lambda: len(backend.requests) == 1)
        opened = []
        for _ in range(60):
            opened.append(stack.enter_context(connect(live.port, b"")))
            with suppress(ConnectionError):
                opened[-1].sendall(start)
        for _ in range(3):
            assert httpx.get(f"{live.url}/health", timeout=10).status_code == 200
        closed = [is_closed(connection) for connection in opened]
        assert sum(not each for each in closed) <= 24
        assert all(closed[:30])  # those that had waited longest
        backend.go_on()
        under_way.settimeout(20)
        assert b"200 OK" in under_way.recv(1000)


def test_a_request_on_its_way_outlives_connections_that_were_answered(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "max_connections", 16)
    ask = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with ExitStack() as stack:
        oldest = stack.enter_context(connect(live.port, b""))
        for _ in range(40):
            answered = stack.enter_context(connect(live.port, ask))
            assert b"200 OK" in answered.recv(1000)
        oldest.sendall(ask)
        assert b"200 OK" in oldest.recv(1000)


def test_a_client_with_many_connections_costs_no_other_its_own(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        mine: set[int] = set()
        monkeypatch.setattr(server_module, "client_of", lambda peer: "mine" if peer[1] in mine else "other")
        monkeypatch.setattr(BoundedProtocol, "max_connections", 16)
        with socket.socket() as connection:
            connection.bind(("127.0.0.1", 0))
            mine.add(connection.getsockname()[1])
            connection.connect(("127.0.0.1", live.port))
            connection.sendall(HALF_A_HEAD)
            for _ in range(40):
                stack.enter_context(connect(live.port, b""))
            assert httpx.get(f"{live.url}/health", timeout=10).status_code == 200
            connection.sendall(b"y\r\nConnection: close\r\n\r\n")
            connection.settimeout(20)
            assert connection.recv(1000).startswith(b"HTTP/1.1 4")  # an answer: it was not closed


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 3000, 100_000])
def test_a_body_in_chunks_is_read_whole_however_small_they_are(
    size: int, live: LiveServer, backend: ScriptedBackend
) -> None:
    start = HALF_A_HEAD + b"y\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    text = "One line of many.\n" * 600
    body = json.dumps({"model": "nano", "messages": [user(text)], "max_tokens": 1}, indent=1).encode()
    with connect(live.port, start + chunked(body, size)) as connection:
        assert b"200 OK" in connection.recv(1000)
        connection.sendall(start + chunked(body, size))  # once more over the same connection
        wait_for(lambda: len(backend.requests) == 2)
    tokenizer = backend.processor.tokenizer
    assert {text.strip() in tokenizer.decode(one.sample.input_ids.tolist()) for one in backend.requests} == {True}


def large(text: str = "x" * 400_000) -> bytes:
    return json.dumps({"model": "nano", "messages": [user(text)]}).encode()


def stalled(live: LiveServer, stack: ExitStack, count: int) -> list[socket.socket]:
    body = large()
    found = [stack.enter_context(connect(live.port, head(len(body)) + body[:-1])) for _ in range(count)]
    wait_for(lambda: live.service.drain_state.num_active == count)
    return found


@pytest.mark.parametrize("old_s", [0.0, 1000.0])
def test_bodies_that_do_not_end_keep_out_no_small_ones(
    old_s: float, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_guard, "OLD_BODY_S", old_s)
    monkeypatch.setattr(request_guard, "SMALL_BODY", 100_000)
    with ExitStack() as stack:
        first, _ = stalled(live, stack, 2)
        assert live.post(CHAT, HELLO).status_code == 200
        answer = httpx.post(live.url + CHAT, content=large(), headers={"Content-Type": "application/json"}, timeout=20)
        if old_s:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        else:
            assert answer.json()["error"]["code"] == "context_length_exceeded"  # it was read, in place of the oldest
            first.settimeout(20)
            assert b" 429 " in first.recv(1000)
    wait_for(lambda: live.service.drain_state.num_active == 0)


def test_a_client_that_sends_much_has_its_own_bodies_dropped_for_another(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_guard, "SMALL_BODY", 100_000)
    clients = iter(("one", "one", "another"))
    monkeypatch.setattr(request_guard, "client_of", lambda peer: next(clients))
    with ExitStack() as stack:
        first, second = stalled(live, stack, 2)
        answer = httpx.post(live.url + CHAT, content=large(), headers={"Content-Type": "application/json"}, timeout=20)
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        first.settimeout(20)
        assert b" 429 " in first.recv(1000)
        assert not is_closed(second)
    wait_for(lambda: live.service.drain_state.num_active == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["open", "answer"])
def test_a_fault_of_ours_is_logged_once(
    stream: bool,
    where: str,
    live: LiveServer,
    backend: ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("broken on purpose")

    if where == "open":
        backend.error = RuntimeError("broken on purpose")
    else:
        monkeypatch.setattr(AnswerText, "add", fail)
    with caplog.at_level(logging.INFO, logger="vl2.serve"):
        answer = live.post(CHAT, {**HELLO, "stream": stream})
        wait_for(lambda: any(record.getMessage() == "request" for record in caplog.records))
    assert "internal_error" in answer.text
    assert "on purpose" not in answer.text
    faults = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info and record.exc_info[1]) for record in faults] == ["broken on purpose"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_server_that_others_can_reach_needs_a_key_or_to_be_told_otherwise(host: str) -> None:
    with pytest.raises(UserError, match=r"set VL2_API_KEY .* or give --allow-unauthenticated"):
        ServerSettings(name="nano", host=host)
    ServerSettings(name="nano", host=host, api_key="secret")
    ServerSettings(name="nano", host=host, allow_unauthenticated=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_server_on_the_loopback_needs_none(host: str) -> None:
    ServerSettings(name="nano", host=host)


def test_prompts_with_the_same_pictures_open_them_once_and_wait_for_no_memory_of_their_own(
    backend: ScriptedBackend,
) -> None:
    side = backend.processor.config.tile_px
    one_tile = 4 * 3 * side**2
    body = {"model": "nano", "prompt": ["<image> One", "Two <image>", "<image>"], "images": [data_url(png(50, 50))]}
    with serving(backend, ServerSettings(name="nano", max_kept_bytes=2 * one_tile)) as live:
        answer = httpx.post(live.url + "/v1/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == 3


def test_each_of_several_prompts_has_the_context_to_itself(live: LiveServer, backend: ScriptedBackend) -> None:
    longest = "hello " * 2500  # eight of them are more characters than 4,096 tokens can hold
    answer = live.post("/v1/completions", {"model": "nano", "prompt": [longest] * 8, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    assert len(backend.requests) == 8


def test_each_of_several_prompts_must_have_the_pictures(live: LiveServer) -> None:
    body = {"model": "nano", "prompt": ["<image> One", "Two"], "images": [data_url(png(50, 50))]}
    answer = live.post("/v1/completions", body)
    assert (answer.status_code, "0 <image> in the text, but 1 image" in answer.text) == (400, True), answer.text
