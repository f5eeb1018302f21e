"""Look up synthetic sources by name, and construct them from the user's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vl2.data.setting_values import Values, arguments, settings_of
from vl2.errors import UserError, name_hint
from vl2.optional_imports import import_named
from vl2.synth.album import Album
from vl2.synth.arithmetic import Arithmetic
from vl2.synth.article import Article
from vl2.synth.chart import Chart
from vl2.synth.document import Document
from vl2.synth.emoji import Emoji
from vl2.synth.form import Form
from vl2.synth.formula import Formula
from vl2.synth.plot_code import PlotCode
from vl2.synth.primer_charts import PrimerBars, PrimerTable
from vl2.synth.primer_lines import PrimerReading
from vl2.synth.primer_scene import PrimerScene
from vl2.synth.receipt import Receipt
from vl2.synth.scene import Scene
from vl2.synth.source import Source
from vl2.synth.table_image import TableImage
from vl2.synth.text_image import TextImage
from vl2.synth.textbook import Textbook
from vl2.synth.visual_prompt import InContext, VisualPrompt
from vl2.synth.web_page import WebPage

_ALL: tuple[type[Source], ...] = (
    TextImage, Formula, Receipt, Form, Document, Article, TableImage, Chart, PlotCode, Emoji, Scene,
    VisualPrompt, InContext, Album, Arithmetic, Textbook, WebPage, PrimerReading, PrimerScene, PrimerBars, PrimerTable,
)  # fmt: skip
SOURCES: dict[str, type[Source]] = {source.name: source for source in _ALL}


def find_source(name: str) -> type[Source]:
    """Return the source class with this name, or import a user's class by a path such as "package.module:Class".

    Raise UserError, with the known names, if there is none.
    """
    if ":" in name:
        found = import_named(name, "draw")
        if not (isinstance(found, type) and issubclass(found, Source)):
            raise UserError(f"{name} is not a synthetic source: it must be a subclass of {Source.__qualname__}")
        return found
    if name not in SOURCES:
        raise UserError(f"a synthetic source is one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]


def make_source(name: str, values: Values) -> Source:
    """Return a source with the given settings. Raise UserError if a setting does not exist or is not valid.

    Settings of a source inside another are written as {"base": {"art": ...}} or {"base.art": ...}.
    """
    kind = find_source(name)
    plain: dict[str, Any] = {}
    within: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        head, _, rest = key.partition(".")
        if rest or isinstance(value, Mapping):
            within.setdefault(head, {}).update({rest: value} if rest else value)
        else:
            plain[key] = value
    made = kind(**arguments(kind, plain, name))
    changed: dict[str, Any] = {}
    for head, settings in within.items():
        if head not in settings_of(kind):
            raise UserError(f"{name} has no setting {head}: {name_hint(head, settings_of(kind))}")
        inner = getattr(made, head)
        if not isinstance(inner, Source):
            raise UserError(f"{head} of {name} has no settings of its own")
        changed[head] = dataclasses.replace(inner, **arguments(type(inner), settings, f"{head} of {name}"))
    return dataclasses.replace(made, **changed)
