"""`/v1/images/tiles`: how images of given sizes are cut, and what they cost, before they are sent."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request

from vl2.process.tile_report import TileReport
from vl2.serve.errors import ApiError
from vl2.serve.json_body import JsonRoute
from vl2.serve.openapi import ERRORS
from vl2.serve.schema.base import Strict
from vl2.serve.service import Service

MAX_SIZES = 1000  # of all messages together

router = APIRouter(route_class=JsonRoute, tags=["images"])

Side = Annotated[int, Field(ge=1, le=1_000_000, description="in pixels, of the picture held upright")]


class ImageSize(Strict):
    width: Side
    height: Side


class TilesRequest(Strict):
    """The images of a whole conversation: how one is cut may depend on the others."""

    messages: Annotated[
        list[Annotated[list[ImageSize], Field(max_length=1000)]],
        Field(min_length=1, max_length=1000, description="the sizes of the images of each message"),
    ]


@router.post("/v1/images/tiles", responses=ERRORS)
async def image_tiles(body: TilesRequest, request: Request) -> dict[str, Any]:
    """Report canvas, grid, tiles and visual tokens of each image, in order, and of all together."""
    service: Service = request.app.state.service
    sizes = [[(size.width, size.height) for size in message] for message in body.messages]
    if (num_images := sum(map(len, sizes))) > MAX_SIZES:
        raise ApiError(400, f"at most {MAX_SIZES} images can be planned at once, got {num_images}", param="messages")
    reports = [report.to_dict() for report in TileReport.plan(sizes, service.backend.processor)]
    return {
        "object": "list",
        "data": reports,
        "visual_tokens": sum(report["visual_tokens"] for report in reports),
        "tiles_encoded": sum(report["tiles_encoded"] for report in reports),
        "context_length": service.backend.max_context,
    }
