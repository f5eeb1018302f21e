"""Assemble the FastAPI application from endpoints, error handlers and middleware."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from vl2 import __version__
from vl2.errors import UserError
from vl2.serve import chat, completions, pdf_pages, responses, state, token_counts
from vl2.serve.answer_log import ServerLog
from vl2.serve.api_errors import handle_error
from vl2.serve.backend import Backend
from vl2.serve.ignored import HEADER
from vl2.serve.json_body import BodyParser
from vl2.serve.request_guard import CancelOnDisconnect, RequestGuard
from vl2.serve.service import Service
from vl2.serve.settings import ServerSettings
from vl2.serve.web import static_files

BYTES_OF_BYTE = 6  # JSON may escape one byte of text as \u0041
OTHER_JSON_BYTES = 4 << 20  # allowed for the rest of a body: schemas, boxes of earlier answers, names
ROUTERS = tuple(part.router for part in (chat, responses, completions, token_counts, pdf_pages, state, static_files))


def make_app(backend: Backend, settings: ServerSettings, answer_log: ServerLog | None = None) -> FastAPI:
    """Return the application. Its lifespan starts and stops the backend and all other workers, and closes the log."""
    service = Service(backend, settings, answer_log)

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
        docs_url=None,  # FastAPI's page would load scripts from another site
        redoc_url=None,
    )
    app.state.service = service
    text_bytes = backend.max_context * backend.processor.tokenizer.token_bounds.max_bytes * settings.limits.max_choices
    app.state.body_parser = BodyParser(
        max_depth=settings.limits.max_depth,
        max_json_bytes=BYTES_OF_BYTE * text_bytes + OTHER_JSON_BYTES,
        max_context=backend.max_context,
    )
    for error in (HTTPException, RequestValidationError, UserError):
        app.add_exception_handler(error, handle_error)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(CancelOnDisconnect)
    app.add_middleware(RequestGuard, service=service)
    if settings.cors_origins:
        # This is added last and so is the outermost middleware: error responses get CORS headers too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients such as OpenAI's send their own headers; the origins protect the server
            expose_headers=["x-request-id", "retry-after", HEADER],
        )
    return app
