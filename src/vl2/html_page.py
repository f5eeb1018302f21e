"""Self-contained HTML pages for reports: images are embedded, and the page loads nothing from elsewhere.

The content is untrusted (records, questions, answers). So the templates escape all values, images are decoded and
encoded again as JPEG, and a content security policy blocks every other source.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from PIL import Image

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(template: str, *, title: str, style: str, script: str | None = None, **values: Any) -> str:
    """Render a template that extends `html_page.jinja`. Template, style and script are paths within the package."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(
        title=title,
        style=Markup(_read(style)),
        script=None if script is None else Markup(_read(script)),
        policy=Markup(_POLICY if script is None else f"{_POLICY}; script-src 'unsafe-inline'"),
        **values,
    )


def _read(path: str) -> str:
    return files("vl2").joinpath(path).read_text(encoding="utf-8")


def data_url(picture: Image.Image, *, max_side_px: int, quality: int) -> str:
    """Return the image as a JPEG data URL, scaled down to `max_side_px` if it is larger."""
    small = picture.copy()
    small.thumbnail((max_side_px, max_side_px))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def in_percent(box: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    """Convert a box (x0, y0, x1, y1) from pixels to percent of the image's (width, height)."""
    return tuple(value / side * 100 for value, side in zip(box, size * 2, strict=True))


def box_style(percent: Sequence[float], digits: int = 2) -> str:
    """Return the CSS position and size of an element that covers the box (x0, y0, x1, y1, in percent)."""
    x0, y0, x1, y1 = percent
    return f"left:{x0:.{digits}f}%;top:{y0:.{digits}f}%;width:{x1 - x0:.{digits}f}%;height:{y1 - y0:.{digits}f}%"
