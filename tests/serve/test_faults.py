"""Clients that vanish or stall, and a server that is told to stop: nothing is kept, nothing accepted is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.infer.talkative import load_talkative
from vl2.infer.vlm import VLM
from vl2.serve import server as server_module
from vl2.serve.settings import RequestLimits, ServerSettings

from .hostile_pictures import ppm_of_odd_depth
from .live_server import LiveServer, engine_backend, serving, wait_for
from .pictures import data_url, example, user

PROCESS = psutil.Process()


@pytest.fixture(scope="module")
def talkative() -> VLM:
    return load_talkative()


def body(text: str = "Tell me a story.", max_tokens: int = 400, **fields: object) -> bytes:
    asked = {"model": "nano", "messages": [user(text, example("line.png"))], "max_tokens": max_tokens, **fields}
    return json.dumps(asked).encode()


def head(content: bytes, path: str = "/v1/chat/completions") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode()


async def vanish(port: int, number: int) -> None:
    """Ask, read a little or nothing, and close the connection without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = body(f"Tell me story {number}.", stream=number % 2 == 0)
    writer.write(head(content) + (content if number % 10 else content[: len(content) // 2]))
    await writer.drain()
    if number % 4 == 0 and number % 10:
        await reader.readuntil(b"data: ")
    else:
        await asyncio.sleep(0.01 * (number % 7))
    writer.transport.abort()


def test_a_hundred_clients_that_vanish_leave_nothing_behind(server: LiveServer) -> None:
    async def run(first: int) -> None:
        await asyncio.gather(*(vanish(server.port, number) for number in range(first, first + 25)))

    rss = []
    for first in range(0, 100, 25):
        asyncio.run(run(first))
        server.wait_until_idle()
        assert server.metric_values()["vl2_cache_tokens_reserved"] == 0
        rss.append(PROCESS.memory_info().rss)
    # The first rounds fill caches; after them a leak of one request's cache and picture each would show.
    assert rss[-1] - rss[1] < 30 << 20
    answer = server.post("/v1/chat/completions", json.loads(body(max_tokens=4)))
    assert 1 <= answer.json()["usage"]["completion_tokens"] <= 4


def test_a_request_that_waits_is_dropped_when_its_client_goes(talkative: VLM) -> None:
    with serving(engine_backend(talkative, max_num_seqs=1), ServerSettings(name="nano", max_prepared=2)) as live:
        content = body(max_tokens=900, stream=True)
        connections = []
        for _ in range(4):  # one is answered, one waits for the engine, two wait for a slot
            connections.append(socket.create_connection(("127.0.0.1", live.port)))
            connections[-1].sendall(head(content) + content)
        wait_for(lambda: live.service._metric_values()["vl2_queue_length"] == 3)
        for connection in connections[1:]:
            connection.close()
        wait_for(lambda: live.service._metric_values()["vl2_queue_length"] == 0)
        assert live.service.drain_state.num_active == 1
        connections[0].close()
        live.wait_until_idle()


@pytest.fixture
def impatient(nano: VLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    monkeypatch.setattr(server_module, "HEAD_TIMEOUT_S", 0.3)
    limits = RequestLimits(body_timeout_s=0.3, write_timeout_s=0.5)
    settings = ServerSettings(name="nano", limits=limits)
    with serving(engine_backend(nano), settings, send_buffer_bytes=16_384) as live:
        yield live


def test_a_body_that_does_not_come_is_not_waited_for(impatient: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(head(b"x" * 1000) + b"{")
        connection.settimeout(20)
        answer = b""
        while not answer.endswith(b"}}") and (more := connection.recv(10_000)):
            answer += more
    assert b" 408 " in answer.splitlines()[0]
    assert b"did not arrive within 0.3 s" in answer
    impatient.wait_until_idle()


def test_a_head_that_does_not_come_is_not_waited_for(impatient: LiveServer) -> None:
    for start in (b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
        with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
            connection.sendall(start)
            connection.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) == b""


def test_a_client_that_reads_nothing_is_dropped(impatient: LiveServer) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", impatient.port))
    content = json.dumps(
        {"model": "nano", "messages": [user("Hi")], "max_tokens": 900, "stream": True, "logprobs": True,
         "top_logprobs": 20, "temperature": 1.9, "seed": 1, "n": 8}
    ).encode()  # fmt: skip
    connection.sendall(head(content) + content)
    wait_for(lambda: impatient.service.drain_state.num_active == 1)
    impatient.wait_until_idle()
    wait_for(lambda: _peers(impatient.port) == 0)
    connection.close()


def _peers(port: int) -> int:
    return sum(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in PROCESS.net_connections("tcp"))


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`vl2 serve` as a user starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = "import sys; from vl2.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--max-num-seqs", "4", "--drain-s", "60"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stderr is not None
    line = json.loads(running.stderr.readline())
    assert line["event"] == "ready"
    yield running, line["url"]
    running.kill()
    running.wait()
    running.stderr.close()


def test_sigterm_lets_accepted_requests_finish_and_refuses_new_ones(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    running, url = process
    outcomes: Counter[str] = Counter()
    broken: set[str] = set()
    is_over = threading.Event()

    def client(number: int) -> None:
        while not is_over.is_set():
            asked = json.loads(body(f"Tell me story {number}.", max_tokens=30, stream=number % 2 == 0))
            request_id = f"request-{number}-{outcomes.total()}"
            headers = {"X-Request-ID": request_id}
            try:
                with httpx.stream(
                    "POST", f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=60
                ) as answer:
                    text = answer.read().decode()
            except httpx.ConnectError:
                outcomes["not connected"] += 1
                return
            except httpx.HTTPError:
                broken.add(request_id)
                return
            if answer.status_code == 503:
                assert json.loads(text)["error"]["code"] == "stopping"
                assert answer.headers["retry-after"]
                outcomes["refused"] += 1
                time.sleep(0.05)
            else:
                assert answer.status_code == 200
                is_whole = text.rstrip().endswith("data: [DONE]") if number % 2 == 0 else '"usage"' in text
                outcomes["whole" if is_whole else "cut"] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: outcomes["whole"] >= 4)
    running.send_signal(signal.SIGTERM)
    running.wait(90)
    is_over.set()
    for thread in threads:
        thread.join(60)
    assert running.returncode == 0
    assert running.stderr is not None
    accepted = {json.loads(line).get("request_id") for line in running.stderr}
    # The system takes connections before the server does, and resets those that came in its last moment.
    assert not broken & accepted
    assert len(accepted) > 8
    assert set(outcomes) <= {"whole", "refused", "not connected"}, outcomes
    assert outcomes["refused"] > 0
    assert outcomes["whole"] >= 8


def test_what_does_not_end_in_time_is_told_so(talkative: VLM) -> None:
    settings = ServerSettings(name="nano", drain_s=0.2)
    with serving(engine_backend(talkative), settings) as live:
        answers: list[httpx.Response] = []
        asked = json.loads(body(max_tokens=3000))
        responded = {"model": "nano", "input": "Hi", "max_output_tokens": 3000, "stream": True}
        threads = [
            threading.Thread(
                target=lambda path=path, fields=fields: answers.append(live.post(path, fields))  # type: ignore[misc]
            )
            for path, fields in (
                ("/v1/chat/completions", asked),
                ("/v1/chat/completions", {**asked, "stream": True}),
                ("/v1/responses", responded),
            )
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: live.metric_values()["vl2_running"] == 3)
        graceful = live.service.abort_connection.__self__  # type: ignore[attr-defined]
        graceful.handle_exit(signal.SIGTERM, None)
        for thread in threads:
            thread.join(30)
    (failed,) = [answer.text for answer in answers if answer.text.startswith("event: response.created")]
    numbers = [int(number) for number in re.findall(r'"sequence_number":(\d+)', failed)]
    assert numbers == list(range(len(numbers)))
    name, told = failed.rstrip().split("\n\n")[-1].split("\n")
    assert name == "event: error"
    error = json.loads(told.removeprefix("data: "))
    assert (error["type"], error["code"]) == ("error", "stopping")
    assert "the server stopped before" in error["message"]
    by_status = {answer.status_code: answer.text for answer in answers if answer.text != failed}
    assert "the server stopped before the answer was complete" in by_status[503]
    assert re.search(r'data: {"error":{"message":"the server stopped before', by_status[200])
    assert "[DONE]" in by_status[200] or by_status[200].rstrip().endswith("}}")


def test_the_log_of_a_server_holds_no_secret_and_no_content(tmp_path: Path) -> None:
    program = "import sys; from vl2.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--max-num-seqs", "2", "--log-level", "debug"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VL2_API_KEY": "very-secret-key"}
    with open(tmp_path / "log", "w+") as file:
        running = subprocess.Popen(command, stderr=file, env=environment)
        try:
            wait_for(lambda: '"ready"' in (tmp_path / "log").read_text(), 60)
            url = json.loads((tmp_path / "log").read_text().splitlines()[0])["url"]
            keyed = {"Authorization": "Bearer very-secret-key", "X-Request-ID": "my-request-1"}
            private = "http://10.0.0.1/signed?token=secret-token"
            for asked in (user("my private words", example("line.png")), user("my private words", private)):
                request = {"model": "nano", "messages": [asked], "max_tokens": 2}
                answer = httpx.post(f"{url}/v1/chat/completions", json=request, headers=keyed, timeout=60)
                assert answer.headers["x-request-id"] == "my-request-1"
            assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer wrong-key"}).status_code == 401
        finally:
            running.terminate()
            running.wait(30)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 400, 401]
    assert requests[0]["request_id"] == "my-request-1"
    assert requests[0]["visual_tokens"] > 0
    text = (tmp_path / "log").read_text()
    for secret in ("very-secret", "wrong-key", "private words", "secret-token", "iVBOR"):
        assert secret not in text


# What holds a server's threads for ever, put into it where it starts.
HANGS = {
    "a thread that writes tokens": "from vl2.process.processor import Processor as P; P.encode = hang",
    "a step of the engine": "from vl2.infer.engine.scheduler import Scheduler as S; S.step = hang",
    "the event loop": "from vl2.infer.engine.scheduler import Scheduler as S; S.make_task = hang",
}


@pytest.mark.parametrize("what", ["a hostile picture", *HANGS])
def test_sigterm_ends_the_process_in_time_whatever_is_under_way(what: str) -> None:
    program = "import sys, time\nfrom vl2.cli.main import main\ndef hang(*_, **__): time.sleep(10_000)\n"
    program += f"{HANGS.get(what, '')}\nmain(sys.argv[1:])"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--max-rows", "2", "--drain-s", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert running.stderr is not None
        url = json.loads(running.stderr.readline())["url"]
        picture = data_url(ppm_of_odd_depth(2500, 2500)) if what == "a hostile picture" else None
        asked = json.dumps({"model": "nano", "messages": [user("Hi", *([picture] if picture else []))]}).encode()
        connections = [socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) for _ in range(4)]
        for connection in connections:
            connection.sendall(head(asked) + asked)
        time.sleep(2.0)
        pids = [child.pid for child in psutil.Process(running.pid).children()]
        assert pids, "pictures are decoded in other processes"
        running.send_signal(signal.SIGTERM)
        # A second of draining and END_GRACE_S at most; the rest is for a busy machine.
        running.wait(1 + server_module.END_GRACE_S + 10)
        if what != "the event loop":
            for connection in connections:
                connection.settimeout(10)
                assert b" 503 " in connection.recv(65536).splitlines()[0]
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))
        for connection in connections:
            connection.close()
    finally:
        running.kill()
        running.wait()
        assert running.stderr is not None
        running.stderr.close()
