"""Every synthetic source by its name."""

from __future__ import annotations

from vl2.data.construct.arithmetic import Arithmetic
from vl2.data.construct.chart import Chart
from vl2.data.construct.document import Document
from vl2.data.construct.form import Form
from vl2.data.construct.formula import Formula
from vl2.data.construct.in_context import InContext
from vl2.data.construct.plot_code import PlotCode
from vl2.data.construct.receipt import Receipt
from vl2.data.construct.scene import Scene
from vl2.data.construct.source import Source
from vl2.data.construct.table_image import TableImage
from vl2.data.construct.text_image import TextImage
from vl2.data.construct.visual_prompt import VisualPrompt
from vl2.data.construct.web_page import WebPage
from vl2.errors import UserError

_ALL: tuple[type[Source], ...] = (
    TextImage, Formula, Receipt, Form, Document, TableImage, Chart, PlotCode, Scene, VisualPrompt, InContext,
    Arithmetic, WebPage,
)  # fmt: skip
SOURCES: dict[str, type[Source]] = {source.name: source for source in _ALL}


def find_source(name: str) -> type[Source]:
    """Return the source of a name; UserError lists the names."""
    if name not in SOURCES:
        raise UserError(f"a synthetic source is one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]
