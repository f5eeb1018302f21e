"""A real server on a free port of 127.0.0.1, in a thread of the test's process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from vl2.infer.engine.scheduler import EngineLimits
from vl2.infer.vlm import VLM
from vl2.serve.answer_log import ServerLog
from vl2.serve.app import make_app
from vl2.serve.backend import Backend
from vl2.serve.engine_backend import EngineBackend
from vl2.serve.server import BoundedProtocol, GracefulServer, bind
from vl2.serve.service import Service
from vl2.serve.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class LiveServer:
    url: str
    port: int
    service: Service

    @property
    def backend(self) -> EngineBackend:
        assert isinstance(self.service.backend, EngineBackend)
        return self.service.backend

    def post(self, path: str, body: Any, **arguments: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **arguments)

    def metric_values(self) -> dict[str, float]:
        return dict(self.backend.metric_values())

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.service.drain_state.num_active == 0 and not self.backend.scheduler.has_work)


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come about"
        time.sleep(0.01)


@contextmanager
def serving(
    backend: Backend,
    settings: ServerSettings,
    *,
    send_buffer_bytes: int | None = None,
    answer_log: ServerLog | None = None,
) -> Iterator[LiveServer]:
    listener = bind("127.0.0.1", 0)
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    port = listener.getsockname()[1]
    app = make_app(backend, settings, answer_log)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        proxy_headers=False,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=5,
    )
    server = GracefulServer(config, app.state.service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield LiveServer(url=f"http://127.0.0.1:{port}", port=port, service=app.state.service)
    finally:
        server.should_exit = True
        thread.join(20)


def engine_backend(vlm: VLM, **limits: Any) -> EngineBackend:
    made = {"max_num_seqs": 8, "max_context": vlm.limits.max_context, "cache_tokens": 16_384, **limits}
    return EngineBackend(vlm, EngineLimits(**made), {})


def events_of(text: str) -> list[Any]:
    """Return the data of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data: "):
                found.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
    return found
