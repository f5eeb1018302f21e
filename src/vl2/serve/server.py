"""Run uvicorn with graceful shutdown, and with limits on idle and slow connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vl2.errors import UserError
from vl2.infer.engine.engine import ENGINE_THREAD
from vl2.serve.request_guard import client_of
from vl2.serve.service import Service
from vl2.serve.telemetry import log

HEAD_TIMEOUT_S = 15.0  # for the request line and the headers
MAX_HEAD_BYTES = 16 << 10
PARSE_CHUNK_BYTES = 2048  # received bytes with many lines are parsed in chunks of this size, about 3 ms each
PARSE_PAUSE_FACTOR = 3  # pause between two chunks, as a multiple of the time for parsing the last one
MANY_LINES = 256  # lines in received data from which it is parsed in chunks; an HTTP chunk has two
MAX_CONNECTIONS = 2048
MIN_CONNECTIONS = 64
EXTRA_CONNECTIONS = 64  # reserved for health probes while all other connections have active requests
CLOSE_DIVISOR = 8  # 1/8 of all connections are closed at a time, because the search takes a while
OTHER_FILES = 256  # file descriptors reserved for the model, images, outgoing connections
# The system's queue of connections that are not yet accepted. If it is full, a client retries a second later.
LISTEN_QUEUE = 4096
BACKLOG = 512  # connections that asyncio accepts at a time, before their number can be checked
ACCEPT_GRACE_S = 0.1  # for accepting the connections in the listen queue
READ_GRACE_S = 0.5  # for reading requests of the last connections
SHUTDOWN_S = 3  # for sending the errors of aborted requests
END_GRACE_S = 10.0  # after the time for draining, the process ends within this time in any case
THREAD_GRACE_S = 1.0  # for threads to end after the server


class BoundedProtocol(H11Protocol):
    """An HTTP connection that is closed if a request's head does not arrive in time, or if too many are open."""

    max_connections = MAX_CONNECTIONS
    _head_timeout: asyncio.TimerHandle | None = None
    _idle_since = 0.0
    _peer = ""
    _chunks: deque[bytes] | None = None  # received bytes that are not yet parsed

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since, self._peer = self.loop.time(), client_of(self.client)
        self._head_timeout = self.loop.call_later(HEAD_TIMEOUT_S, transport.abort)
        if len(self.connections) > self.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._chunks is None and (
            len(data) <= PARSE_CHUNK_BYTES or self._is_in_plain_body or data.count(b"\n") < MANY_LINES
        ):
            self._parse(data)
        else:
            chunks = self._chunks = self._chunks or deque()
            chunks.extend(data[at : at + PARSE_CHUNK_BYTES] for at in range(0, len(data), PARSE_CHUNK_BYTES))
            self.transport.pause_reading()
            _ParseScheduler.of(self.loop).add(self)

    def parse_next(self) -> bool:
        """Parse one chunk of the received bytes. Return whether more are left."""
        if self._chunks and not self.transport.is_closing():
            self._parse(self._chunks.popleft())
        if self._chunks and not self.transport.is_closing():
            return True
        self._chunks = None
        if not self.flow.read_paused:
            self.transport.resume_reading()
        return False

    @property
    def _is_in_plain_body(self) -> bool:
        """Tell whether a body with a Content-Length is being received, which needs no parsing."""
        if self.cycle is None or not self.cycle.more_body:
            return False
        return all(name != b"transfer-encoding" for name, _ in self.headers)

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timeout()
        elif self._head_timeout is None:
            self._head_timeout = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timeout()
        super().connection_lost(exc)

    @property
    def _is_waiting(self) -> bool:
        """Tell whether the connection is idle or its request is not yet complete."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    @property
    def _is_answered(self) -> bool:
        """Tell whether a request of this connection was answered and no other has begun."""
        return self.cycle is not None and bool(self.cycle.response_complete)

    def _make_room(self) -> None:
        """Close the oldest waiting connections of the client that has most of them, those first that were answered.

        So a client that opens connections without end loses its own. A connection with a complete request is never
        closed, and one whose request may be on its way only if too few were answered.
        """
        waiting: dict[str, list[BoundedProtocol]] = {}
        for other in self.connections:
            if isinstance(other, BoundedProtocol) and other is not self and other._is_waiting:
                waiting.setdefault(other._peer, []).append(other)
        if waiting:
            most = max(waiting.values(), key=len)
            most.sort(key=lambda other: (not other._is_answered, other._idle_since))
            for other in most[: max(1, self.max_connections // CLOSE_DIVISOR)]:
                self.connections.discard(other)
                other.transport.abort()
        elif len(self.connections) > self.max_connections + EXTRA_CONNECTIONS:
            self.transport.abort()

    def _cancel_timeout(self) -> None:
        if self._head_timeout is not None:
            self._head_timeout.cancel()
            self._head_timeout = None


class _ParseScheduler:
    """Lets connections parse received bytes round-robin, one chunk at a time, with pauses between chunks.

    A body sent in HTTP chunks of one byte takes a second of parsing per megabyte, which would block all other
    connections. The pauses are three times as long as the parsing, because the engine's thread needs the GIL.
    """

    _of_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, _ParseScheduler]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._waiting: deque[BoundedProtocol] = deque()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _ParseScheduler:
        return cls._of_loop.setdefault(loop, cls())

    def add(self, connection: BoundedProtocol) -> None:
        if connection in self._waiting:
            return
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        connection = self._waiting.popleft()
        if connection.parse_next():
            self._waiting.append(connection)
        if self._waiting:
            loop.call_later(PARSE_PAUSE_FACTOR * (loop.time() - began), self._run)


class GracefulServer(uvicorn.Server):
    """A server that drains on the first SIGTERM or Ctrl-C, and refuses new requests with a 503 meanwhile.

    On a second signal it ends all requests at once.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, *, on_signal: Callable[[float], None] = lambda _: None
    ) -> None:
        """Make a server. On a signal, `on_signal` is called with the seconds until the process must have ended."""
        super().__init__(config)
        self._service, self._on_signal = service, on_signal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._listeners: list[socket.socket] = []
        service.abort_connection = self._abort

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._listeners = asyncio.get_running_loop(), sockets or []
        await super().startup(sockets)
        for listener in self._listeners:
            listener.listen(LISTEN_QUEUE)
        log("ready", {"model": self._service.settings.name, "url": f"http://{_shown(sockets)}"})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or self._draining is not None:
            self._on_signal(END_GRACE_S)
            self.should_exit = self.force_exit = True
            return
        self._on_signal(self._service.settings.drain_s + END_GRACE_S)
        self._loop.call_soon_threadsafe(self._start_draining, signal.Signals(sig).name)

    def _start_draining(self, name: str) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(name))

    async def _drain(self, name: str) -> None:
        drain_state, settings = self._service.drain_state, self._service.settings
        log("draining", {"signal": name, "under_way": drain_state.num_active, "at_most_s": settings.drain_s})
        if not await drain_state.drain(settings.drain_s):
            # Requests that are still active end with a 503, or with an error at the end of their stream.
            log("cutting_short", {"under_way": drain_state.num_active})
            await self._service.abort_requests()
        # Closing a socket resets the connections in its listen queue. So allow no new ones, and accept those in it.
        for listener in self._listeners:
            listener.listen(0)
        await asyncio.sleep(ACCEPT_GRACE_S)
        for listening in self.servers:
            listening.close()
        # Wait for the requests of connections that were just accepted, which get a 503 too.
        await asyncio.sleep(READ_GRACE_S)
        self.should_exit = True

    def _abort(self, client: tuple[str, int] | None) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, H11Protocol) and connection.client == client:
                connection.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """Bind the address. It is called before the model is loaded. Raise UserError if that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host}:{port}: {why}") from None
    return listener


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serve the application until a signal ends it."""
    BoundedProtocol.max_connections = min(MAX_CONNECTIONS, _allowed_files() - OTHER_FILES - BACKLOG)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=SHUTDOWN_S,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    service: Service = app.state.service
    deadline = _Deadline(service)
    try:
        GracefulServer(config, service, on_signal=deadline.set).run(sockets=[listener])
    finally:
        service.decoders.stop()  # after a second signal, the application's own shutdown is skipped
    deadline.check_threads()


class _Deadline:
    """Ends the process at a deadline, because a thread that hangs in a library would keep it alive forever."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        """Set or change the deadline."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._end, (1,))
        self._timer.daemon = True
        self._timer.start()

    def check_threads(self) -> None:
        """End the process at once if the engine's thread or a non-daemon thread is still running."""
        until = time.monotonic() + THREAD_GRACE_S
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and (not thread.daemon or thread.name == ENGINE_THREAD):
                thread.join(max(0.0, until - time.monotonic()))
                if thread.is_alive():
                    self._end(0)

    def _end(self, status: int) -> None:
        # This runs in a thread, because the thread that hangs may hold any lock, even that of the log.
        last = threading.Thread(target=self._log_and_stop, daemon=True)
        last.start()
        last.join(THREAD_GRACE_S)
        os._exit(status)

    def _log_and_stop(self) -> None:
        self._service.decoders.stop()
        log("ended_with_work_under_way", {"threads": [thread.name for thread in threading.enumerate()]})


def _allowed_files() -> int:
    """Raise the limit of open files as far as needed and allowed, and return it. Every connection is a file."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS + OTHER_FILES + BACKLOG
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES + BACKLOG
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than their hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(soft, OTHER_FILES + BACKLOG + MIN_CONNECTIONS)


def _shown(sockets: list[socket.socket] | None) -> str:
    host, port = sockets[0].getsockname()[:2] if sockets else ("", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
