"""A client that goes ends its request wherever it is: waiting, fetching, decoding, in the engine, before any token."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vl2.serve.request_guard import ClientGone


class CancelOnDisconnect:
    """Cancels the application when the client closes the connection, and raises ClientGone."""

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

        # What it held is freed as it unwinds; a process that decodes for it is killed, and its answers are dropped.
        work = asyncio.create_task(self._run(scope, body, send))
        listener = asyncio.create_task(listen())
        try:
            await work
        except asyncio.CancelledError:
            if has_gone:
                raise ClientGone from None
            raise  # with what was cancelled, which waiting for it cancels too
        finally:
            listener.cancel()

    async def _run(self, scope: Scope, body: asyncio.Queue[Message], send: Send) -> None:
        await self._app(scope, body.get, send)
