"""The application: endpoints, errors, and what stands before them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from vl2 import __version__
from vl2.errors import UserError
from vl2.serve import chat, completions, image_tiles, responses, state
from vl2.serve.backend import Backend
from vl2.serve.disconnect import CancelOnDisconnect
from vl2.serve.errors import handle_error
from vl2.serve.guard import Guard
from vl2.serve.service import Service
from vl2.serve.settings import ServerSettings
from vl2.serve.web import page


def make_app(backend: Backend, settings: ServerSettings) -> FastAPI:
    """Return the application. It starts and stops the backend, and all else that runs, with itself."""
    service = Service(backend, settings)

    @contextlib.asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="vl2",
        version=__version__,
        description="DeepSeek-VL2 behind OpenAI's API, with boxes.",
        lifespan=run,
        docs_url=None,  # its page loads scripts from another site
        redoc_url=None,
    )
    app.state.service = service
    app.state.settings = settings
    for error in (HTTPException, RequestValidationError, UserError):
        app.add_exception_handler(error, handle_error)
    for part in (chat, responses, completions, image_tiles, state, page):
        app.include_router(part.router)
    app.add_middleware(CancelOnDisconnect)
    app.add_middleware(Guard, service=service)
    if settings.cors_origins:
        # Outermost, so that a page can read errors too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients send headers of their own, as OpenAI's does; the origins are the guard
            expose_headers=["x-request-id", "retry-after"],
        )
    return app
