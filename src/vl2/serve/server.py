"""Run uvicorn with a graceful stop and with limits on idle and slow connections."""

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
PIECE_BYTES = 2048  # bytes parsed at once where there are many lines: about 3 ms
FEEDER_REST = 3  # the pause, as a multiple of the time of the last piece
MANY_LINES = 256  # of what came at once; a chunk of a body has two
MAX_CONNECTIONS = 2048
MIN_CONNECTIONS = 64
MORE_CONNECTIONS = 64  # kept for probes while all others have requests under way
CLOSED_AT_ONCE = 8  # one in so many connections is closed at once: searching takes a while
OTHER_FILES = 256  # files kept for other uses: the model, pictures, outgoing connections
# Connections that the system holds until they are taken, or as many as it allows. One that finds no room is tried again
# a second later, whoever it is from.
LISTEN_QUEUE = 4096
BACKLOG = 512  # connections accepted at once, before their number can be checked
LAST_ACCEPTING_S = 0.1
LAST_READING_S = 0.5
LAST_WORDS_S = 3  # for errors of requests that were cut short to reach their clients
END_GRACE_S = 10.0  # after the time to drain; then the process ends in any case
LAST_THREADS_S = 1.0  # for threads to end after the server has


class BoundedProtocol(H11Protocol):
    """Cuts a connection off when the head of a request does not arrive in time, or when others need its place."""

    max_connections = MAX_CONNECTIONS
    _alarm: asyncio.TimerHandle | None = None
    _waits_since = 0.0
    _peer = ""
    _pieces: deque[bytes] | None = None  # bytes received but not parsed yet

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waits_since, self._peer = self.loop.time(), client_of(self.client)
        self._alarm = self.loop.call_later(HEAD_TIMEOUT_S, transport.abort)
        if len(self.connections) > self.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._pieces is None and (
            len(data) <= PIECE_BYTES or self._is_in_plain_body or data.count(b"\n") < MANY_LINES
        ):
            self._take(data)
        else:
            pieces = self._pieces = self._pieces or deque()
            pieces.extend(data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES))
            self.transport.pause_reading()
            _Feeder.of(self.loop).add(self)

    def feed(self) -> bool:
        """Parse one piece of the received bytes, and return whether more is left."""
        if self._pieces and not self.transport.is_closing():
            self._take(self._pieces.popleft())
        if self._pieces and not self.transport.is_closing():
            return True
        self._pieces = None
        if not self.flow.read_paused:
            self.transport.resume_reading()
        return False

    @property
    def _is_in_plain_body(self) -> bool:
        """Whether a body with a stated length is arriving, in which nothing is parsed."""
        if self.cycle is None or not self.cycle.more_body:
            return False
        return all(name != b"transfer-encoding" for name, _ in self.headers)

    def _take(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._silence()
        elif self._alarm is None:
            self._alarm = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def on_response_complete(self) -> None:
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence()
        super().connection_lost(exc)

    @property
    def _is_waiting(self) -> bool:
        """Whether the request is not complete: no head, half a head or half a body has come."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _make_room(self) -> None:
        """Close the oldest waiting connections of the client that has the most, many at once.

        A client that opens connections without end thus loses its own. A complete request is never cut off.
        """
        waiting: dict[str, list[BoundedProtocol]] = {}
        for other in self.connections:
            if isinstance(other, BoundedProtocol) and other is not self and other._is_waiting:
                waiting.setdefault(other._peer, []).append(other)
        if waiting:
            most = max(waiting.values(), key=len)
            most.sort(key=lambda other: other._waits_since)
            for other in most[: max(1, self.max_connections // CLOSED_AT_ONCE)]:
                self.connections.discard(other)  # many at once, so that the next connections need no search
                other.transport.abort()
        elif len(self.connections) > self.max_connections + MORE_CONNECTIONS:
            self.transport.abort()

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


class _Feeder:
    """Feeds received bytes to connections in turn, one piece at a time, and pauses between two pieces.

    A body in chunks of one byte takes a second of parsing per megabyte, which would block all other connections. The
    pause is three times the work: the engine's thread needs the interpreter's lock again and again.
    """

    _of_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, _Feeder]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._waiting: deque[BoundedProtocol] = deque()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Feeder:
        return cls._of_loop.setdefault(loop, cls())

    def add(self, connection: BoundedProtocol) -> None:
        if connection in self._waiting:
            return
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._feed)

    def _feed(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        connection = self._waiting.popleft()
        if connection.feed():
            self._waiting.append(connection)
        if self._waiting:
            loop.call_later(FEEDER_REST * (loop.time() - began), self._feed)


class GracefulServer(uvicorn.Server):
    """Drains on the first SIGTERM or Ctrl-C: new requests get a 503. On the second signal all requests end."""

    def __init__(
        self, config: uvicorn.Config, service: Service, *, on_signal: Callable[[float], None] = lambda _: None
    ) -> None:
        """`on_signal` gets the number of seconds after which the process must have ended."""
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
        log("draining", {"signal": name, "under_way": drain_state.num_under_way, "at_most_s": settings.drain_s})
        if not await drain_state.drain(settings.drain_s):
            # Requests that are still under way end with a 503, or with an error at the end of their stream.
            log("cutting_short", {"under_way": drain_state.num_under_way})
            await self._service.cut_short()
        # Closing the socket would reset connections in the listen queue. So the queue is closed and emptied first.
        for listener in self._listeners:
            listener.listen(0)
        await asyncio.sleep(LAST_ACCEPTING_S)
        for listening in self.servers:
            listening.close()
        # Connections that were just accepted have sent no request yet: they get a 503 too.
        await asyncio.sleep(LAST_READING_S)
        self.should_exit = True

    def _abort(self, client: tuple[str, int] | None) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, H11Protocol) and connection.client == client:
                connection.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """Bind the address before the model is loaded. UserError if that is not possible."""
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
    """Serve until a signal ends it."""
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
        timeout_graceful_shutdown=LAST_WORDS_S,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    service: Service = app.state.service
    deadline = _Deadline(service)
    try:
        GracefulServer(config, service, on_signal=deadline.set).run(sockets=[listener])
    finally:
        service.decoders.stop()  # a second signal skips the end of the application
    deadline.check_threads()


class _Deadline:
    """Ends the process at a deadline. Otherwise a thread that hangs in a library would keep it alive for ever."""

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
        """End the process at once if the engine or a thread that Python would wait for still runs."""
        until = time.monotonic() + LAST_THREADS_S
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and (not thread.daemon or thread.name == ENGINE_THREAD):
                thread.join(max(0.0, until - time.monotonic()))
                if thread.is_alive():
                    self._end(0)

    def _end(self, status: int) -> None:
        # In a thread, because whatever hangs may hold any lock, even that of the log.
        last = threading.Thread(target=self._say_and_stop, daemon=True)
        last.start()
        last.join(LAST_THREADS_S)
        os._exit(status)

    def _say_and_stop(self) -> None:
        self._service.decoders.stop()
        log("ended_with_work_under_way", {"threads": [thread.name for thread in threading.enumerate()]})


def _allowed_files() -> int:
    """Raise the limit of open files as far as the system allows, and return it. Every connection is a file."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS + OTHER_FILES + BACKLOG
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES + BACKLOG
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(soft, OTHER_FILES + BACKLOG + MIN_CONNECTIONS)


def _shown(sockets: list[socket.socket] | None) -> str:
    host, port = sockets[0].getsockname()[:2] if sockets else ("", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
