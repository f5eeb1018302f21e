"""Pages that need nothing else: pictures inside, every text escaped, and a policy that loads nothing.

What is shown comes from strangers: records, questions, answers. The templates escape all values, and pictures are
decoded and encoded anew.
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
    """Fill a template that extends `html_page.jinja`. Template, style and script are paths within the package."""
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
    """Return a JPEG of the picture, scaled down to fit."""
    small = picture.copy()
    small.thumbnail((max_side_px, max_side_px))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def in_percent(box: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    """Return a box (x0, y0, x1, y1) in percent of a picture's width and height."""
    return tuple(value / side * 100 for value, side in zip(box, size * 2, strict=True))


def box_style(percent: Sequence[float], digits: int = 2) -> str:
    """Return the CSS that places an element where the box is."""
    x0, y0, x1, y1 = percent
    return f"left:{x0:.{digits}f}%;top:{y0:.{digits}f}%;width:{x1 - x0:.{digits}f}%;height:{y1 - y0:.{digits}f}%"
