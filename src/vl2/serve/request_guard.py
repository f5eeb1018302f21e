"""Middleware for all endpoints: it checks host and API key, limits request bodies, and logs each request.

It is pure ASGI, so streams pass through without buffering. Every refusal is an error in OpenAI's format. When a client
disconnects, its request is canceled at any stage: waiting, fetching, decoding or generating.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.serve.api_errors import ApiError, error_response, to_api_error
from vl2.serve.service import Service
from vl2.serve.telemetry import log

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
# Health probes and metrics scrapers have no key. These paths reveal nothing confidential.
_OPEN_PATHS = ("/health", "/ready", "/metrics")
# Paths that need the key. The web page, which asks for the key itself, and the OpenAPI document are public.
_KEY_PATHS = ("/v1", "/tokenize", "/detokenize")
SMALL_BODY = 1 << 20
OLD_BODY_S = 5.0  # age from which a client's own body may be dropped for its next one
SMALL_RESERVE = 64 << 20  # bytes beyond the limit of all bodies that only small bodies may use


class ClientGone(Exception):
    """The client has closed the connection or stopped reading."""


class RequestGuard:
    """The outer middleware: it checks host and key, limits bodies, counts requests for draining, and logs."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._settings, self._drain_state = (
            app,
            service,
            service.settings,
            service.drain_state,
        )
        key = self._settings.api_key
        self._key = key.encode() if key is not None else None
        self._bytes_in_flight = 0
        self._arriving: list[_IncomingBody] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["client"] = client_of(scope.get("client"))
        began = time.monotonic()
        channel = _Channel(receive, send, request_id, self._settings.limits.write_timeout_s)
        is_post = scope["method"] == "POST"
        if is_post and not self._drain_state.is_draining:
            self._drain_state.enter()
            state["is_counted"] = True
        try:
            await self._handle(scope, headers, channel, is_post)
        except ClientGone:
            channel.status = channel.status or 499
            if channel.has_stalled:
                self._service.abort_connection(scope.get("client"))
        except Exception as error:
            state["error"] = error
            if channel.status is None:
                await self._refuse(scope, channel, error)
        finally:
            if state.pop("is_counted", False):
                self._drain_state.leave()
            self._log_request(scope, channel, time.monotonic() - began)

    async def _handle(self, scope: Scope, headers: Headers, channel: _Channel, is_post: bool) -> None:
        try:
            self._check_host(headers)
            self._check_key(scope, headers)
            if is_post and not scope["state"].get("is_counted"):
                raise ApiError(503, "the server is stopping and takes no new requests", code="stopping", retry_s=5)
            body = await self._read_body(headers, channel, scope["state"]["client"]) if is_post else b""
        except ApiError as error:
            await self._refuse(scope, channel, error)
            return
        replay, size = _BodyReplay(body, channel.receive), len(body)
        del body  # otherwise this frame would keep it alive after parsing
        try:
            await self._app(scope, replay, channel.send)
        finally:
            self._bytes_in_flight -= size

    def _check_host(self, headers: Headers) -> None:
        """Refuse other host names than those of the loopback if there is no key.

        This prevents DNS rebinding, by which a page of another site could use a local server.
        """
        if self._key is not None or not self._settings.is_loopback:
            return
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() not in (*_LOOPBACK_NAMES, *self._settings.allowed_hosts):
            raise ApiError(403, "this host name is not served here; --allow-host adds one", code="unknown_host")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        # A CORS preflight comes without the key.
        if self._key is None or scope["method"] == "OPTIONS" or not scope["path"].startswith(_KEY_PATHS):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(key.encode("utf-8", "replace"), self._key):
            what = "is wrong" if key else "is missing: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, f"the API key {what}", code="invalid_api_key")

    async def _read_body(self, headers: Headers, channel: _Channel, client: str) -> bytes:
        limits = self._settings.limits
        most = limits.max_body_bytes
        declared = headers.get("content-length")
        if declared is not None and (not declared.isdigit() or len(declared) > 18):
            raise ApiError(400, "the Content-Length is no number", code="invalid_request")
        if declared is not None and int(declared) > most:
            raise _too_large(most)
        deadline = time.monotonic() + limits.body_timeout_s
        parts: list[bytes] = []
        arriving = _IncomingBody(client=client)
        self._arriving.append(arriving)
        try:
            while True:
                message = await self._receive(arriving, channel, deadline)
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                arriving.size += len(part)
                self._bytes_in_flight += len(part)
                if arriving.size > most:
                    raise _too_large(most)
                self._make_room(arriving)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        except BaseException:
            self._bytes_in_flight -= arriving.size
            raise
        finally:
            self._arriving.remove(arriving)

    async def _receive(self, arriving: _IncomingBody, channel: _Channel, deadline: float) -> Message:
        try:
            message = await asyncio.wait_for(channel.receive(), max(0.0, deadline - time.monotonic()))
        except (TimeoutError, asyncio.TimeoutError):
            limit_s = self._settings.limits.body_timeout_s
            raise ApiError(408, f"the body did not arrive within {limit_s:g} s", code="timeout") from None
        except asyncio.CancelledError:
            if arriving.is_dropped:
                raise _overloaded() from None
            raise
        if arriving.is_dropped:
            raise _overloaded()
        return message

    def _make_room(self, arriving: _IncomingBody) -> None:
        """Drop the oldest incoming bodies if all bodies together take too much memory.

        Bodies of the client with the most bytes are dropped, so endless bodies harm only the client that sends them. If
        that is the client of this request, the request is refused unless the client has an old body to drop.
        """
        most = self._settings.max_in_flight_bytes
        most += SMALL_RESERVE if arriving.size <= SMALL_BODY else 0
        while self._bytes_in_flight > most:
            sizes: Counter[str] = Counter()
            for other in self._arriving:
                sizes[other.client] += other.size
            client = max(sizes, key=sizes.__getitem__)
            others = (other for other in self._arriving if other.client == client and not other.is_dropped)
            oldest = next(others, arriving)
            is_young = time.monotonic() - oldest.began_at < OLD_BODY_S
            if oldest is arriving or (client == arriving.client and is_young):
                raise _overloaded()
            self._bytes_in_flight -= oldest.size
            oldest.drop()

    async def _refuse(self, scope: Scope, channel: _Channel, error: Exception) -> None:
        scope["state"]["error"] = error
        response = error_response(error)
        # Close the connection, because the unread rest of the body would be parsed as the next request.
        response.headers["connection"] = "close"
        with contextlib.suppress(ClientGone):
            await response(scope, channel.receive, channel.send)

    def _log_request(self, scope: Scope, channel: _Channel, took_s: float) -> None:
        state: dict[str, Any] = scope["state"]
        route = scope.get("route")
        path = getattr(route, "path", None) or (scope["path"] if scope["path"] in _OPEN_PATHS else "other")
        status = channel.status or 500
        self._service.metrics.requests.labels(path, str(status)).inc()
        if path in _OPEN_PATHS:
            return
        error = state.get("error")
        api_error = to_api_error(error) if isinstance(error, Exception) else None
        if isinstance(error, Exception) and api_error is not None and api_error.status_code == 500:
            # All internal errors are logged here, including those after a stream has begun.
            log("failed", {"request_id": state["request_id"]}, level=logging.ERROR, error=error)
        fields: dict[str, Any] = {"error": api_error.code} if api_error is not None and api_error.code else {}
        log(
            "request",
            {
                "request_id": state["request_id"],
                "method": scope["method"],
                "path": path,
                "status": status,
                "took_s": round(took_s, 3),
                **fields,
                **state.get("log", {}),
            },
        )


@dataclass(eq=False)
class _IncomingBody:
    """A request body that is being received."""

    client: str
    size: int = 0
    began_at: float = field(default_factory=time.monotonic)
    task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    is_dropped: bool = False

    def drop(self) -> None:
        self.is_dropped, self.size = True, 0
        if self.task is not None:
            self.task.cancel()


class _Channel:
    """The receive and send functions of one request.

    `send` adds the request id to the response, and raises ClientGone if the client does not read for too long.
    """

    def __init__(self, receive: Receive, send: Send, request_id: str, timeout_s: float) -> None:
        self.receive = receive
        self._send = send
        self._request_id = request_id
        self._timeout_s = timeout_s
        self.status: int | None = None
        self.has_stalled = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers.setdefault("x-content-type-options", "nosniff")
        task = asyncio.current_task()
        assert task is not None
        # This is cheaper than asyncio.wait_for, which would create a task for every chunk of a stream.
        alarm = asyncio.get_running_loop().call_later(self._timeout_s, self._time_out, task)
        try:
            await self._send(message)
        except OSError:
            raise ClientGone from None
        except asyncio.CancelledError:
            if self.has_stalled:
                raise ClientGone from None
            raise
        finally:
            alarm.cancel()

    def _time_out(self, task: asyncio.Task[Any]) -> None:
        self.has_stalled = True
        task.cancel()


class _BodyReplay:
    """A receive function that returns a body that was already read, and then the messages of the connection."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def client_of(peer: Sequence[Any] | None) -> str:
    """Return the client's identity for limits and fairness: its IPv4 address, or its IPv6 /64 network.

    A /64 network usually belongs to one customer. An identity that clients choose themselves would let one client pose
    as many.
    """
    host = str(peer[0]) if peer else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _overloaded() -> ApiError:
    return ApiError(429, "the server holds too many large requests", code="rate_limit_exceeded", retry_s=5)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than the limit of {most} bytes", code="body_too_large")


class CancelOnDisconnect:
    """Middleware that cancels the application and raises ClientGone when the client disconnects."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body: asyncio.Queue[Message] = asyncio.Queue()
        has_gone = False

        async def listen() -> None:
            nonlocal has_gone
            while (message := await receive())["type"] != "http.disconnect":
                body.put_nowait(message)
            has_gone = not work.done()
            work.cancel()

        # Canceling this task releases the request's permits, kills its decoder process, and cancels its answers.
        work = asyncio.create_task(self._run(scope, body, send))
        listener = asyncio.create_task(listen())
        try:
            await work
        except asyncio.CancelledError:
            if has_gone:
                raise ClientGone from None
            raise  # this task itself was canceled, and `work` with it
        finally:
            listener.cancel()

    async def _run(self, scope: Scope, body: asyncio.Queue[Message], send: Send) -> None:
        await self._app(scope, body.get, send)
