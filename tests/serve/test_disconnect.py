"""A client that goes is noticed wherever its request is, and nothing of it goes on. Text waits for no picture."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.infer.talkative import load_talkative
from vl2.infer.vlm import VLM
from vl2.process import fetch
from vl2.serve.settings import RequestLimits, ServerSettings

from .hostile_pictures import ppm_of_odd_depth
from .live_server import LiveServer, engine_backend, serving, wait_for
from .pictures import data_url, example, user

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def talkative() -> VLM:
    return load_talkative()


@pytest.fixture(scope="module")
def slow_picture() -> str:
    """A picture that takes seconds to decode, in Python."""
    return data_url(ppm_of_odd_depth(1500, 1500))


@pytest.fixture
def live(nano: VLM) -> Iterator[LiveServer]:
    limits = RequestLimits(fetch_timeout_s=100.0, decode_cpu_s=100.0, decode_timeout_s=100.0)
    settings = ServerSettings(name="nano", allow_private_urls=True, max_prepared=4, limits=limits)
    with serving(engine_backend(nano), settings) as server:
        yield server


def ask(server: LiveServer, content: bytes, path: str = CHAT) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    connection.sendall(f"{head}\r\n\r\n".encode() + content)
    return connection


def body(*urls: str, text: str = "Look.", max_tokens: int = 4, **fields: object) -> bytes:
    return json.dumps({"model": "nano", "messages": [user(text, *urls)], "max_tokens": max_tokens, **fields}).encode()


def assert_gone(server: LiveServer) -> None:
    """Nothing is under way any more, and nothing is held."""
    service = server.service
    wait_for(lambda: service.drain_state.num_active == 0, 10)
    server.wait_until_idle()
    held = (service.image_semaphore, service.text_semaphore, service.kept_bytes, service.decoders.memory)
    assert [semaphore.num_taken for semaphore in held] == [0, 0, 0, 0]
    assert server.metric_values()["vl2_cache_tokens_reserved"] == 0
    answer = server.post(CHAT, json.loads(body(example("line.png"))))
    assert answer.status_code == 200


@contextmanager
def silent_web() -> Iterator[tuple[str, list[socket.socket]]]:
    """A web server that takes connections and says nothing."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", taken
    for connection in taken:
        connection.close()


def reads_end(connection: socket.socket) -> bool:
    """Tell whether the other side has closed a connection, reading what it said before."""
    connection.settimeout(10)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_while_a_picture_is_fetched(live: LiveServer) -> None:
    with silent_web() as (url, taken):
        client = ask(live, body(url))
        wait_for(lambda: len(taken) == 1)
        client.close()
        assert_gone(live)
        assert reads_end(taken[0])


def test_while_a_name_is_looked_up(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over, is_asked = threading.Event(), threading.Event()

    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: object, **named: object) -> object:
        if host == "slow-name.test":
            is_asked.set()
            is_over.wait(60)
        return resolve(host, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(fetch.socket, "getaddrinfo", getaddrinfo)
        client = ask(live, body("http://slow-name.test/a.png"))
        is_asked.wait(30)
        client.close()
        wait_for(lambda: live.service.drain_state.num_active == 0, 10)
        wait_for(lambda: not any(thread.name.startswith("vl2-read") and _is_fetching(thread)
                                 for thread in threading.enumerate()), 10)  # fmt: skip
        is_over.set()
    assert_gone(live)


def _is_fetching(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and any(entry.name == "fetch" for entry in traceback.extract_stack(frame))


def test_while_a_picture_is_decoded(live: LiveServer, slow_picture: str) -> None:
    before = set(live.service.decoders.process_ids)
    client = ask(live, body(slow_picture))
    (pid,) = before
    wait_for(lambda: psutil.Process(pid).cpu_times().user > 0.8)
    client.close()
    assert_gone(live)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10)


def test_while_it_waits_for_a_process_and_for_a_place(live: LiveServer, slow_picture: str) -> None:
    clients = [ask(live, body(slow_picture)) for _ in range(12)]
    wait_for(lambda: live.service.image_semaphore.num_waiting == 8 and live.service.decoders.num_waiting > 0)
    for client in clients[4:]:  # those without a place, and then those with one
        client.close()
    wait_for(lambda: live.service.image_semaphore.num_waiting == 0, 10)
    for client in clients[:4]:
        client.close()
    assert_gone(live)


def test_while_tokens_are_written(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over, is_begun = threading.Event(), threading.Event()
    encode = type(live.service.backend.processor).encode

    def slow(*arguments: object, **named: object) -> object:
        is_begun.set()
        is_over.wait(60)
        return encode(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(live.service.backend.processor), "encode", slow)
        client = ask(live, body())
        is_begun.wait(30)
        client.close()
        wait_for(lambda: live.service.drain_state.num_active == 0, 10)
        is_over.set()
    assert_gone(live)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_while_it_waits_in_the_engine_and_before_its_first_token(talkative: VLM, path: str, stream: bool) -> None:
    fields = {"model": "nano", "stream": stream}
    texts = {
        CHAT: {**fields, "messages": [user("Hello")], "max_tokens": 900},
        "/v1/completions": {**fields, "prompt": "Hello", "max_tokens": 900},
        "/v1/responses": {**fields, "input": "Hello", "max_output_tokens": 900},
    }
    content = json.dumps(texts[path]).encode()
    with serving(engine_backend(talkative, max_num_seqs=1), ServerSettings(name="nano")) as server:
        first, second = ask(server, content, path), ask(server, content, path)
        wait_for(lambda: server.metric_values()["vl2_queue_length"] == 1 and server.metric_values()["vl2_running"] == 1)
        (second if server.service.drain_state.num_active == 2 else first).close()
        wait_for(lambda: server.service.drain_state.num_active == 1, 10)
        wait_for(lambda: server.metric_values()["vl2_queue_length"] == 0)
        first.close()
        wait_for(lambda: server.service.drain_state.num_active == 0, 10)
        server.wait_until_idle()


def test_while_its_prompt_is_read(nano: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from vl2.infer.prefill import Prefill

    steps: list[float] = []
    step = Prefill.step

    def slow(self: Prefill) -> object:
        steps.append(time.monotonic())
        time.sleep(0.3)
        return step(self)

    monkeypatch.setattr(Prefill, "step", slow)
    with serving(engine_backend(nano, prefill_chunk=16), ServerSettings(name="nano")) as server:
        client = ask(server, body(text="A long question, word by word. " * 60))  # some thirty passes
        wait_for(lambda: len(steps) > 1)
        client.close()
        server.wait_until_idle()
        assert len(steps) < 20
        monkeypatch.undo()
        assert_gone(server)


def test_text_waits_for_no_picture(live: LiveServer, slow_picture: str) -> None:
    with silent_web() as (url, taken):
        clients = [ask(live, body(url)) for _ in range(2)]
        clients += [ask(live, body(slow_picture)) for _ in range(10)]
        service = live.service
        wait_for(lambda: len(taken) == 2 and service.image_semaphore.num_waiting == 8)
        for asked in (
            (CHAT, json.loads(body())),
            ("/v1/completions", {"model": "nano", "prompt": "Hello", "max_tokens": 2}),
            ("/v1/responses", {"model": "nano", "input": "Hello", "max_output_tokens": 2}),
        ):
            assert live.post(*asked).status_code == 200
            assert service.image_semaphore.num_waiting  # answered before the pictures, of which a few may be done
        for client in clients:
            client.close()
        assert_gone(live)


def test_more_fetches_than_threads_keep_text_and_data_urls_waiting_for_nothing(nano: VLM) -> None:
    settings = ServerSettings(name="nano", allow_private_urls=True, limits=RequestLimits(fetch_timeout_s=100.0))
    with silent_web() as (url, taken), serving(engine_backend(nano), settings) as server:
        clients = [ask(server, body(url)) for _ in range(30)]
        wait_for(lambda: len(taken) >= 12 and server.service.drain_state.num_active == 30)
        assert server.post(CHAT, json.loads(body())).status_code == 200
        assert server.post(CHAT, json.loads(body(example("line.png")))).status_code == 200
        for client in clients:
            client.close()
        assert_gone(server)


def test_what_waits_for_a_picture_when_the_server_ends_is_told_so(nano: VLM, slow_picture: str) -> None:
    limits = RequestLimits(decode_cpu_s=100.0, decode_timeout_s=100.0)
    with serving(engine_backend(nano), ServerSettings(name="nano", drain_s=0.2, limits=limits)) as server:
        client = ask(server, body(slow_picture))
        wait_for(lambda: server.service.drain_state.num_active == 1)
        graceful = server.service.abort_connection.__self__  # type: ignore[attr-defined]
        graceful.handle_exit(15, None)
        client.settimeout(30)
        answer = client.recv(65536)
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
            answer += client.recv(65536)
    assert b" 503 " in answer.splitlines()[0]
    assert b"the server stopped before the answer was complete" in answer
    assert not [pid for pid in server.service.decoders.process_ids if psutil.pid_exists(pid) and _parent(pid)]


def _parent(pid: int) -> bool:
    process = psutil.Process(pid)
    return process.status() != psutil.STATUS_ZOMBIE and process.ppid() == os.getpid()
