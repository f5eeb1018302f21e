"""Endpoints about the server: `/v1/models`, `/version`, `/health`, `/ready` and `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2 import __version__
from vl2.serve.api_errors import ERRORS, ApiError
from vl2.serve.service import Service

router = APIRouter(tags=["state"])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the base model and its adapters."""
    service: Service = request.app.state.service
    return {"object": "list", "data": [_card(service, name) for name in service.model_names]}


@router.get("/v1/models/{name:path}", responses={404: ERRORS[404]})
async def show_model(name: str, request: Request) -> dict[str, Any]:
    """Describe one model."""
    service: Service = request.app.state.service
    service.adapter_of(name)
    return _card(service, name)


@router.get("/version")
async def version() -> dict[str, str]:
    """Return the version of vl2."""
    return {"version": __version__}


@router.get("/health")
async def health() -> dict[str, str]:
    """Report that the process is alive."""
    return {"status": "ok"}


@router.get("/ready", responses={503: ERRORS[503]})
async def ready(request: Request) -> Response:
    """Report whether the server accepts new requests."""
    service: Service = request.app.state.service
    if service.drain_state.is_draining or not service.backend.is_ready:
        raise ApiError(503, "the server is stopping", code="stopping", retry_s=5)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _card(service: Service, name: str) -> dict[str, Any]:
    limits, processor = service.settings.limits, service.backend.processor
    base = service.settings.name
    context = service.backend.max_context
    return {
        "id": name,
        "name": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "vl2",
        "root": base,
        "parent": None if name == base else base,
        "max_model_len": context,
        "context_length": context,
        # OpenRouter's format, from which some clients detect that the model accepts images.
        "architecture": {
            "modality": "text+image->text",
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
        },
        "modalities": {"input": ["text", "image"], "output": ["text", "boxes"]},
        "kind": processor.kind,
        "image_limits": {
            "max_images": limits.max_images,
            "max_bytes": limits.max_image_bytes,
            "max_pixels": limits.max_image_pixels,
            "max_tiles": processor.cutter.most_views,
            "tile_px": processor.cutter.tile_px,
        },
    }
