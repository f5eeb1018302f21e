"""One client that sends far too much, and what another notices of it: a server as a user starts it, and its memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from .pictures import user

CHAT = "/v1/chat/completions"
MB = 1_000_000
# What guards against a server that hangs, on a machine that is busy with other things too.
HEALTH_S, CHAT_S = 5.0, 20.0
GROWTH_BYTES, LEFT_BYTES = 1000 * MB, 150 * MB


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Bodies that are sent at the same moment."""

    name: str
    statuses: set[int]
    bodies: Callable[[], list[bytes]]
    path: str = CHAT


def _chat(message: object, **fields: object) -> bytes:
    return json.dumps({"model": "nano", "messages": [message], "max_tokens": 2, **fields}, ensure_ascii=False).encode()


def _attack(name: str, make: Callable[[], bytes], *, count: int = 1, **fields: object) -> Attack:
    return Attack(name=name, statuses={400}, bodies=lambda: [make()] * count, **fields)  # type: ignore[arg-type]


def _image(url: str) -> bytes:
    return _chat(user("Look.", url))


ATTACKS = [
    _attack("3.9 million CJK letters", lambda: _chat(user("\u4e2d" * 3_900_000)), count=4),
    _attack("16 messages of 3.9 million letters", lambda: json.dumps(
        {"model": "nano", "messages": [user("a b " * 975_000)] * 16}).encode(), count=2),
    _attack("as much text as the parser takes", lambda: _chat(user("\u4e2d" * 2_500_000)), count=4),
    _attack("a prompt of 60 MB", lambda: json.dumps({"model": "nano", "prompt": "x" * 60 * MB}).encode(),
            path="/v1/completions"),
    _attack("an input of 60 MB in escapes", lambda: json.dumps({"model": "nano", "input": "\u4e2d" * 10 * MB}).encode(),
            path="/v1/responses"),
    _attack("a percent-encoded data URL of 57 MB", lambda: _image("data:," + "%41" * 19 * MB), count=4),
    _attack("percent-encoded base64 of 57 MB", lambda: _image("data:;base64," + "%41" * 19 * MB), count=2),
    _attack("base64 of 57 MB with a blank after each digit", 
            lambda: _image("data:;base64," + "A " * 28 * MB), count=4),
    _attack("a text of 57 MB that begins like a data URL", lambda: _chat(user("data:," + "x" * 57 * MB)), count=2),
    _attack("an http URL of 50 MB", lambda: _image("http://example.com/" + "a" * 50 * MB), count=2),
    _attack("a path of 400,000 parts", lambda: _image("a/" * 400_000), count=16),
    _attack("a file: URL of 400,000 parts", lambda: _image("file:///" + "%61/" * 400_000), count=4),
    _attack("a path of 400,000 parts that lead up", lambda: _image("a/../" * 400_000), count=4),
    _attack("60 MB of JSON values", lambda: json.dumps({"model": "nano", "x": ["abcdefgh"] * 5 * MB}).encode()),
    _attack("60 MB of quotes", lambda: b'{"model": "' + b'\\"' * 30 * MB + b'"}'),
    _attack("60 MB of beginnings of data URLs", lambda: b'{"model": ' + b'"data:' * 10 * MB + b"}"),
    _attack("60 MB of blanks", lambda: b" " * 60 * MB),
    _attack("metadata of 50 MB", lambda: _chat(user("Hi."), metadata={"a": "b" * 50 * MB})),
    _attack("metadata of a data URL of 50 MB", lambda: _chat(user("Hi."), metadata={"a": "data:," + "b" * 50 * MB})),
    _attack("a name of 50 MB in the metadata", lambda: _chat(user("Hi."), metadata={"b" * 50 * MB: "a"})),
    _attack("a user of 50 MB", lambda: _chat(user("Hi."), user="b" * 50 * MB)),
]  # fmt: skip


@dataclass
class Served:
    """A server, and what was noticed of it while something else was under way."""

    url: str
    process: psutil.Process
    health_s: list[float] = field(default_factory=list)
    chat_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask_health(self) -> None:
        self._time(self.health_s, lambda: httpx.get(f"{self.url}/health", timeout=60))

    def ask_text(self) -> None:
        asked = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        self._time(self.chat_s, lambda: httpx.post(self.url + CHAT, json=asked, timeout=60))

    def note_memory(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)

    @property
    def num_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def _time(self, times: list[float], ask: Callable[[], httpx.Response]) -> None:
        began = time.monotonic()
        try:
            ask().raise_for_status()
        except httpx.HTTPError as error:
            self.failures.append(repr(error))
        times.append(time.monotonic() - began)

    def hold(self, work: Callable[[], None]) -> None:
        """Do it, ask and watch meanwhile, and check that nobody else had to notice."""
        self.ask_text()
        self.health_s, self.chat_s, self.failures = [], [], []
        baseline = self.peak_bytes = self.num_bytes
        is_over = threading.Event()

        def repeat(act: Callable[[], None], pause_s: float) -> None:
            act()
            while not is_over.wait(pause_s):
                act()

        watchers = [
            threading.Thread(target=repeat, args=watched)
            for watched in ((self.ask_health, 0.1), (self.ask_text, 0.3), (self.note_memory, 0.02))
        ]
        for thread in watchers:
            thread.start()
        try:
            work()
        finally:
            is_over.set()
            for thread in watchers:
                thread.join()
        self.ask_health()
        deadline = time.monotonic() + 20
        while self.num_bytes - baseline > LEFT_BYTES and time.monotonic() < deadline:
            time.sleep(0.2)
        left = self.num_bytes - baseline
        print(f"/health {max(self.health_s):.2f} s, chat {max(self.chat_s):.2f} s, "
              f"{(self.peak_bytes - baseline) / 1e6:+.0f} MB, left {left / 1e6:+.0f} MB")  # fmt: skip
        assert self.failures == []
        assert max(self.health_s) < HEALTH_S
        assert max(self.chat_s) < CHAT_S
        assert self.peak_bytes - baseline < GROWTH_BYTES
        assert left < LEFT_BYTES


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("allowed")
    log = tmp_path_factory.mktemp("log") / "log"
    program = "import sys; from vl2.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--no-urls", "--allow-files", str(folder)]
    with open(log, "w") as stderr:
        running = subprocess.Popen(command, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield Served(url=_url_of(log, running), process=psutil.Process(running.pid))
    finally:
        running.kill()
        running.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line for line in lines if line["event"] == "failed"] == []


def _url_of(log: Path, running: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 120
    while '"ready"' not in (text := log.read_text()):
        assert running.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    return str(json.loads(text.splitlines()[0])["url"])


def _head(length: int, path: str = CHAT) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def _send(port: int, path: str, body: bytes) -> int:
    """Send it without the copies that a client library makes, and return the status."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        with suppress(OSError):  # it is refused before its end
            connection.sendall(_head(len(body), path))
            connection.sendall(body)
        return int(connection.recv(100)[9:12] or b"0")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_request_that_is_far_too_large_costs_others_nothing(attack: Attack, served: Served) -> None:
    bodies = attack.bodies()
    statuses: Counter[int] = Counter()

    def send(body: bytes) -> None:
        statuses[_send(served.port, attack.path, body)] += 1

    def work() -> None:
        threads = [threading.Thread(target=send, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    served.hold(work)
    assert set(statuses) <= attack.statuses, statuses
    assert statuses.total() == len(bodies)


def _connect(served: Served, stack: ExitStack, count: int, start: bytes) -> None:
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60))
        with suppress(OSError):
            connection.sendall(start)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("half a head each", b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "),
        ("nothing", b""),
        ("half a body each", _head(1000) + b"{"),
        ("a whole request, and then nothing", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_thousands_of_connections_that_say_little_leave_room_for_others(
    name: str, start: bytes, served: Served
) -> None:
    del name

    def work() -> None:
        with ExitStack() as stack:
            _connect(served, stack, 2200, start)
            time.sleep(2)  # the server's answers to others meanwhile are what counts

    served.hold(work)


def test_large_bodies_that_do_not_end_leave_room_for_others(served: Served) -> None:
    body = _chat(user("x" * 50 * MB))

    def work() -> None:
        with ExitStack() as stack:
            _connect(served, stack, 12, _head(len(body)) + body[:-1])
            time.sleep(2)

    served.hold(work)


def test_bodies_in_chunks_of_one_byte_leave_time_for_others(served: Served) -> None:
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    start += b"Transfer-Encoding: chunked\r\n\r\n"
    is_over = threading.Event()

    def send(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(start)
            while not is_over.is_set():
                connection.sendall(b"1\r\nx\r\n" * 5000)

    def work() -> None:
        with ExitStack() as stack:
            connections = [
                stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60)) for _ in range(30)
            ]
            threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
            for thread in threads:
                thread.start()
            time.sleep(8)
            is_over.set()
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # also of one that waits until the server takes more
            for thread in threads:
                thread.join()

    served.hold(work)
