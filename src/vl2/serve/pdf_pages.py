"""The endpoint `/v1/pdf/pages`, which draws pages of a PDF file as pictures, for clients that cannot draw them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2.errors import UserError
from vl2.process.decode import ImageOptions
from vl2.process.image import read_source
from vl2.process.pdf import DEFAULT_DPI, MAX_DPI, MIN_DPI, EncodedPage, PagesOptions
from vl2.serve.api_errors import ERRORS
from vl2.serve.decoders import EncodedImage
from vl2.serve.ignored import IgnoredFieldsRoute
from vl2.serve.schema.base import Strict
from vl2.serve.service import Service

router = APIRouter(route_class=IgnoredFieldsRoute)

MAX_PAGES = 64  # of one request
CPU_SHARE = 0.5  # of the CPU time for one file, after which no further page is begun


class PdfPagesRequest(Strict):
    """A PDF file, and which of its pages are wanted in which size."""

    file: Annotated[str, Field(description="a data URL, `data:application/pdf;base64,...`; nothing is fetched")]
    pages: Annotated[
        list[Annotated[int, Field(ge=1, le=1_000_000)]],
        Field(min_length=1, max_length=MAX_PAGES, description="from 1; numbers beyond the last page are left out"),
    ]
    dpi: Annotated[int, Field(ge=MIN_DPI, le=MAX_DPI)] = DEFAULT_DPI
    max_side_px: Annotated[
        int | None, Field(ge=16, le=20_000, description="a page that would be larger gets a lower resolution")
    ] = None
    format: Literal["png", "jpeg"] = "png"


@router.post("/v1/pdf/pages", responses=ERRORS, tags=["images"])
async def pdf_pages(body: PdfPagesRequest, request: Request) -> Response:
    """Draw pages as pictures. Pages for which the time or the size of a response do not suffice are left out.

    So a client asks again for the pages that are missing; at least one is always there.
    """
    service: Service = request.app.state.service
    limits = service.settings.limits
    if body.file[:5].lower() != "data:":
        raise UserError("file must be a data URL with a PDF file; nothing is fetched for this endpoint")
    source, options = body.file, ImageOptions(max_bytes=limits.max_image_bytes)
    wanted = PagesOptions(
        pages=tuple(dict.fromkeys(body.pages)),
        dpi=body.dpi,
        max_side_px=body.max_side_px,
        format=body.format,
        max_page_px=limits.max_image_pixels,
        cpu_s=CPU_SHARE * limits.decode_cpu_s,
    )
    async with service.admission(request.state.client) as admission:
        await admission.wait(has_images=True)
        file = EncodedImage(name="the PDF file", load=lambda: read_source(source, options))
        num_pages, pages = await service.decoders.draw_pages(file, wanted, request.state.client)
    return await asyncio.to_thread(_response, num_pages, pages, body.format)


def _response(num_pages: int, pages: Sequence[EncodedPage], format: str) -> Response:
    data: list[dict[str, Any]] = [
        {
            "page": page.page,
            "width": page.size[0],
            "height": page.size[1],
            "url": f"data:image/{format};base64,{base64.b64encode(page.data).decode()}",
        }
        for page in pages
    ]
    return JSONResponse({"object": "list", "num_pages": num_pages, "data": data})
