"""What clients may do to stop a server for others, and what others notice of it: a table to which rows can be added.

`benchmarks/hostile_load.py` runs all of it against `vl2 serve` as a user starts it; tests run some.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from . import hostile_pictures as pictures
from .hostile import SLOW_SCHEMA
from .pictures import EXAMPLES, data_url

CHAT = "/v1/chat/completions"
SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Requests that come at the same moment."""

    name: str
    group: str
    bodies: Callable[[], list[bytes]]
    path: str = CHAT
    leaves_after_s: float | None = None  # then all clients close their connections; None: they wait for answers
    num_rounds: int = 1


def _chat(*parts: object, **fields: object) -> bytes:
    message = {"role": "user", "content": list(parts)}
    return json.dumps({"model": "nano", "messages": [message], "max_tokens": 2, **fields}).encode()


def _picture(data: bytes) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def picture_requests(num_requests: int, num_pictures: int, make: Callable[[], bytes]) -> Callable[[], list[bytes]]:
    """Return that many requests with the same picture several times each."""

    def bodies() -> list[bytes]:
        part = _picture(make())
        return [_chat(*[part] * num_pictures, _text(f"Look {number}.")) for number in range(num_requests)]

    return bodies


def _pictures(name: str, num_requests: int, num_pictures: int, make: Callable[[], bytes], **fields: object) -> Attack:
    shown = (
        f"{num_requests} requests of {num_pictures}: {name}" if num_pictures > 1 else f"{num_requests} requests: {name}"
    )
    return Attack(name=shown, group="pictures", bodies=picture_requests(num_requests, num_pictures, make), **fields)  # type: ignore[arg-type]


def _raw(name: str, make: Callable[[], list[bytes]], path: str = CHAT) -> Attack:
    return Attack(name=name, group="text", bodies=make, path=path)


SCANS = _pictures("progressive JPEG of 36 MP in 3,000 scans", 4, 1, lambda: pictures.jpeg_of_scans(6000, 6000, 3000))
SLOW = _pictures("PPM of 6 MP that is decoded in Python", 4, 1, lambda: pictures.ppm_of_odd_depth(2500, 2500))
VANISHING = _pictures(
    "the same, and the clients go after a second", 4, 1, lambda: pictures.ppm_of_odd_depth(2500, 2500),
    leaves_after_s=1.0, num_rounds=3,
)  # fmt: skip

ATTACKS = [
    SCANS,
    _pictures("progressive JPEG of 36 MP in 50 scans, the limit", 4, 3, lambda: pictures.jpeg_of_scans(6000, 6000, 50)),
    _pictures("16-bit grey PNG of 40 MP", 4, 3, lambda: pictures.flat_png(8000, 5000, depth=16, color_type=0, value=9)),
    _pictures("RGBA PNG of 40 MP", 4, 3, lambda: pictures.flat_png(8000, 5000, color_type=6, value=9)),
    _pictures("16-bit RGBA PNG of 40 MP", 4, 3, lambda: pictures.flat_png(8000, 5000, depth=16, color_type=6, value=9)),
    _pictures("float TIFF of 40 MP", 4, 3, lambda: pictures.flat("F", 8000, 5000, "TIFF", compression="tiff_lzw")),
    _pictures("CMYK JPEG of 40 MP", 4, 3, lambda: pictures.flat("CMYK", 8000, 5000, "JPEG", progressive=True)),
    _pictures("WebP of 40 MP", 4, 3, lambda: pictures.flat("RGBA", 8000, 5000, "WEBP", method=0)),
    _pictures("AVIF of 40 MP", 4, 3, lambda: pictures.flat("RGB", 8000, 5000, "AVIF", speed=10)),
    _pictures("JPEG 2000 of 22 MP", 4, 2, lambda: pictures.noise(4700, 4700, "JPEG2000")),
    _pictures("GIF of 40 MP", 4, 3, lambda: pictures.flat("P", 8000, 5000, "GIF")),
    _pictures("PNG of 2 x 20,000,000", 4, 3, lambda: pictures.flat_png(2, 20_000_000)),
    _pictures("TIFF of 300 tags, each of the same 10 MB", 4, 1, lambda: pictures.tiff_of_large_tags(300, 10_000_000)),
    _pictures("PNG of 800,000 chunks", 4, 1, lambda: pictures.png_of_many_chunks(800_000)),
    SLOW,
    VANISHING,
    _pictures("two pictures of ten tiles each", 64, 2, lambda: pictures.noise(900, 900, "JPEG")),
    _raw("a message of 3.9 million CJK letters", lambda: [_chat(_text("\u4e2d" * 3_900_000))]),
    _raw("16 messages of 3.9 million letters", lambda: [
        json.dumps({"model": "nano", "max_tokens": 2, "messages": [
            {"role": "user", "content": "a b " * 975_000}] * 16}).encode()]),
    _raw("a data URL of 57 MB, percent-encoded", lambda: [
        _chat({"type": "image_url", "image_url": {"url": "data:," + "%41" * 19_000_000}}, _text("Look."))]),
    _raw("60 MB of JSON", lambda: [json.dumps({"model": "nano", "x": ["abcdefgh" * 100] * 74_000}).encode()]),
    _raw("8 schemas of 16 patterns that take over a minute each to compile", lambda: [
        _chat(_text("Hi."), response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "title": str(n), **SLOW_SCHEMA}}}) for n in range(8)]),
    _raw("4 x 9,000 answers one after the other", lambda: [
        json.dumps({"model": "nano", "messages": [{"role": "assistant", "content": "a"}] * 9000}).encode()] * 4),
    _raw("metadata of 50 MB", lambda: [_chat(_text("Hi."), metadata={"a": "b" * 50_000_000})]),
]  # fmt: skip


@dataclass
class Effect:
    """What an attack did, and what others noticed of it."""

    statuses: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0
    health_s: list[float] = field(default_factory=list)
    chat_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    baseline_bytes: int = 0
    peak_bytes: int = 0
    after_bytes: int = 0

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.baseline_bytes

    @property
    def left_bytes(self) -> int:
        return self.after_bytes - self.baseline_bytes


def tree_bytes(pid: int) -> int:
    """Return the memory of a process and all that it started; what they share is counted once."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError):
                total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
    return total


def attack(url: str, pid: int, what: Attack, *, settle_s: float = 20.0) -> Effect:
    """Do it, ask for /health and a chat without pictures meanwhile, and watch the memory."""
    effect, is_over = Effect(), threading.Event()
    bodies = what.bodies()
    for _ in range(2):
        _ask_text(url, Effect())
    effect.baseline_bytes = tree_bytes(pid)
    watchers = [
        threading.Thread(target=_repeat, args=(is_over, work, pause_s))
        for work, pause_s in (
            (lambda: _ask_health(url, effect), 0.1),
            (lambda: _ask_text(url, effect), 0.5),
            (lambda: _note_memory(pid, effect), 0.05),
        )
    ]
    for thread in watchers:
        thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    for _ in range(what.num_rounds):
        clients = [threading.Thread(target=_send, args=(url, what, body, effect)) for body in bodies]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
    effect.took_s = time.monotonic() - began
    time.sleep(1.0)  # what goes on although its clients have gone is noticed too
    is_over.set()
    for thread in watchers:
        thread.join()
    deadline = time.monotonic() + settle_s
    while True:
        effect.after_bytes = tree_bytes(pid)
        if effect.left_bytes < 100 << 20 or time.monotonic() > deadline:
            return effect
        time.sleep(0.5)


def left_by(url: str, pid: int, what: Attack, first: Effect, limit_bytes: int) -> int:
    """Return how much memory an attack leaves behind. Above the limit it is made once more, and that one counts.

    The first pictures and prompts of a process fill its caches, which are bounded and stay; what is lost would be lost
    each time.
    """
    return first.left_bytes if first.left_bytes <= limit_bytes else attack(url, pid, what).left_bytes


def _repeat(is_over: threading.Event, work: Callable[[], None], pause_s: float) -> None:
    while not is_over.wait(pause_s):
        work()


def _ask_health(url: str, effect: Effect) -> None:
    began = time.monotonic()
    try:
        httpx.get(f"{url}/health", timeout=60).raise_for_status()
    except httpx.HTTPError as error:
        effect.failures.append(f"/health: {error!r}")
    effect.health_s.append(time.monotonic() - began)


def _ask_text(url: str, effect: Effect) -> None:
    asked = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "user": "another"}
    began = time.monotonic()
    try:
        httpx.post(url + CHAT, json=asked, timeout=120).raise_for_status()
    except httpx.HTTPError as error:
        effect.failures.append(f"chat: {error!r}")
    effect.chat_s.append(time.monotonic() - began)


def _note_memory(pid: int, effect: Effect) -> None:
    effect.peak_bytes = max(effect.peak_bytes, tree_bytes(pid))


def _send(url: str, what: Attack, body: bytes, effect: Effect) -> None:
    address = httpx.URL(url)
    head = "\r\n".join(
        (f"POST {what.path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Connection: close",
         f"Content-Length: {len(body)}", "", "")
    )  # fmt: skip
    try:
        with socket.create_connection((address.host, address.port or 80)) as connection:
            connection.settimeout(300)
            connection.sendall(head.encode() + body)
            if what.leaves_after_s is not None:
                time.sleep(what.leaves_after_s)
                effect.statuses["left"] += 1
                return
            answer = b""
            while more := connection.recv(65536):
                answer += more
        effect.statuses[answer[9:12].decode() or "closed"] += 1
    except OSError as error:
        effect.statuses[type(error).__name__] += 1


@contextmanager
def served(*arguments: str, source: Path = SOURCE) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `vl2 serve` as a user starts it, and return its process and address."""
    program = "import sys; from vl2.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "serve", "--port", "0", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert running.stderr is not None
    try:
        line = json.loads(running.stderr.readline())
        assert line["event"] == "ready"
        threading.Thread(target=running.stderr.read, daemon=True).start()  # or the log would fill its pipe
        example = base64.b64encode((EXAMPLES / "line.png").read_bytes()).decode()
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{example}"}}
        httpx.post(line["url"] + CHAT, content=_chat(part, _text("Look.")), timeout=60,
                   headers={"Content-Type": "application/json"})  # fmt: skip
        yield running, line["url"]
    finally:
        running.kill()
        running.wait()
