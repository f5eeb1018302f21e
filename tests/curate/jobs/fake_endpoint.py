"""An OpenAI-compatible endpoint on 127.0.0.1 that answers as a function tells it, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    text: str = "7"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    raw: bytes | None = None  # sent instead of a chat completion
    after_s: float = 0.0
    total_tokens: int = 10


Answer = Callable[[dict[str, Any], int], Reply]


def prompt_of(body: dict[str, Any]) -> str:
    """Return the text of the user's turn."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


class FakeEndpoint:
    """`answer(body, number)` is called with the number of times that this body was seen, from 1."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.authorization: set[str | None] = set()
        self.under_way = 0
        self.most_under_way = 0
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeEndpoint:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> int:
        return sum(self.seen.values())

    def reply(self, body: bytes, authorization: str | None) -> Reply:
        values = json.loads(body)
        with self._lock:
            self.seen[body.decode()] += 1
            number = self.seen[body.decode()]
            self.bodies.append(values)
            self.authorization.add(authorization)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        reply = self._answer(values, number)
        if reply.after_s:
            time.sleep(reply.after_s)
        with self._lock:
            self.under_way -= 1
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


def _handler(fake: FakeEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            reply = fake.reply(body, self.headers.get("authorization"))
            message = {"message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish_reason}
            completion = {"choices": [message], "usage": {"total_tokens": reply.total_tokens}}
            content = json.dumps(completion).encode() if reply.raw is None else reply.raw
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client gave up, or was killed
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
