"""The recipe of a stage's data, read from a TOML file.

    seed = 1
    format = "parquet"                 # or tar, jsonl
    shard_records = 1000               # the most records in a file, and the unit of a build that goes on after a stop

    [[source]]                         # synthetic records
    name = "scenes"
    draw = "scene"
    count = 2000
    settings = {art = "assets/noto"}
    repeat = {art = ["assets/noto", "assets/twemoji"]}   # alternative: one run per value, which share the count

    [[source]]                         # a public dataset in its original layout
    name = "coco-boxes"
    convert = "coco"
    from = "sets/coco"
    split = "train2017"
    settings = {draw_tables = true}    # for wikitables and tabfact: draw the tables as images
    filter = [{name = "tiny", min_side_px = 64}]

    [[source]]                         # any dataset in the layout of the Hugging Face hub
    name = "charts"
    hub = "HuggingFaceM4/ChartQA"      # read as a stream from the hub, or from a copy: from = "sets/chartqa"
    split = "train"
    settings = {columns = {images = "image", question = "query", answer = "label"}, category = "table_chart"}

    [[source]]                         # existing records
    name = "own"
    records = "own/*.parquet"

    [[filter]]                         # for every source, before the source's own filters
    name = "damaged"

Paths are relative to the working directory of the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vl2.curate.filters.filter_catalog import FILTERS
from vl2.data.setting_values import Values, arguments
from vl2.data.store.locations import ENDINGS
from vl2.datasets import CATALOG
from vl2.datasets.hub_sets import HubSettings, hub_location
from vl2.errors import UserError, name_hint
from vl2.files import read_toml
from vl2.synth.builtin_inputs import check_inputs
from vl2.synth.catalog import make_source

_KINDS = ("draw", "convert", "hub", "records")


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """One source of a stage; exactly one of `draw`, `convert`, `hub` and `records` is set and determines the kind."""

    name: str
    draw: str = ""
    convert: str = ""
    hub: str = ""  # OWNER/NAME of a set on the hub
    records: str = ""
    count: int | None = None  # the number of records to draw, or the most to read
    seed: int | None = None  # default: the recipe's seed
    settings: Mapping[str, Any] = field(default_factory=dict)  # of a drawn source or hub set; draw_tables
    repeat: Mapping[str, Any] = field(default_factory=dict)  # one setting and its values, with one run per value
    folder: str = ""  # "from" in the file: the unpacked public dataset
    split: str = "train"
    language: str | None = None
    negatives: float | None = None
    filters: tuple[Values, ...] = ()  # "filter" in the file

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or any(sign in self.name for sign in "/\\ "):
            raise UserError(f"the name of a source must be usable as a file name, got {self.name!r}")
        kinds = [kind for kind in _KINDS if getattr(self, kind)]
        if len(kinds) != 1:
            raise UserError(f"source {self.name} must have one of {', '.join(_KINDS)}, it has {len(kinds)}")
        if self.draw and self.count is None:
            raise UserError(f"source {self.name} is drawn: it needs a count")
        if self.count is not None and self.count < 0:
            raise UserError(f"count of {self.name} must be at least 0, got {self.count}")
        if self.convert:
            self._check_dataset()
        if self.hub:
            hub_location(self.hub, self.folder, self.hub_settings().revision)
        if not self.draw and (self.repeat or (not self.hub and set(self.settings) - self._allowed_settings())):
            raise UserError(f"source {self.name} is not drawn: it takes no settings")
        if not self.draw and not isinstance(self.settings.get("draw_tables", False), bool):
            raise UserError(f"draw_tables of {self.name} must be true or false, got {self.settings['draw_tables']!r}")
        if len(self.repeat) > 1 or any(not isinstance(v, list) or not v for v in self.repeat.values()):
            raise UserError(f"repeat of {self.name} is one setting and a list of its values")
        _check_filters(self.filters)
        for settings in self.runs() if self.draw else ():
            make_source(self.draw, settings)

    def _allowed_settings(self) -> set[str]:
        return {"draw_tables"} if self.convert and CATALOG[self.convert].draws else set()

    def hub_settings(self) -> HubSettings:
        return HubSettings(**arguments(HubSettings, self.settings, f"source {self.name}"))

    @property
    def draws_tables(self) -> bool:
        return bool(self.settings.get("draw_tables", False))

    def _check_dataset(self) -> None:
        if self.convert not in CATALOG:
            raise UserError(f"source {self.name}: no dataset is called {self.convert!r}: "
                            f"{name_hint(self.convert, CATALOG)}")  # fmt: skip
        if not self.folder:
            raise UserError(f"source {self.name} is converted: it needs from, the folder of the dataset")

    def runs(self) -> list[dict[str, Any]]:
        """Return the settings of every run of a synthetic source: one run, or one for each value of `repeat`."""
        values = [(name, value) for name, listed in self.repeat.items() for value in listed]
        return [{**self.settings, name: value} for name, value in values] or [dict(self.settings)]


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """All sources of a stage."""

    sources: tuple[SourceEntry, ...]
    filters: tuple[Values, ...] = ()
    seed: int = 0
    format: str = "parquet"
    shard_records: int = 1000

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.sources]
        twice = {name for name in names if names.count(name) > 1}
        if not names:
            raise UserError("a stage needs at least one [[source]]")
        if twice:
            raise UserError(f"two sources are called {sorted(twice)[0]}")
        if f".{self.format}" not in ENDINGS:
            raise UserError(f"format must be one of {', '.join(e[1:] for e in ENDINGS)}, got {self.format!r}")
        if self.shard_records < 1:
            raise UserError(f"shard_records must be at least 1, got {self.shard_records}")
        _check_filters(self.filters)

    def seed_of(self, entry: SourceEntry) -> int:
        return self.seed if entry.seed is None else entry.seed


def read_recipe(path: str) -> StageRecipe:
    """Read a recipe. Raise a UserError that names the file if anything in it is not valid."""
    values = read_toml(path)
    try:
        sources = tuple(_entry(each) for each in _tables(values.pop("source", []), "source"))
        filters = tuple(_tables(values.pop("filter", []), "filter"))
        checked = arguments(StageRecipe, values, "a stage", without=("sources", "filters"))
        return StageRecipe(sources=sources, filters=filters, **checked)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_recipe_inputs(recipe: StageRecipe, path: str) -> None:
    """Raise UserError if a source would draw too many pictures from the built-in sentences or tables."""
    for entry in recipe.sources:
        for settings in entry.runs() if entry.draw else ():
            source = make_source(entry.draw, settings)
            check_inputs(source, entry.count or 0, what=f"{path}: source {entry.name}")


def _entry(values: Values) -> SourceEntry:
    # "from" is a keyword in Python, and "filter" reads better than a plural in the file.
    renamed = {{"from": "folder", "filter": "filters"}.get(key, key): value for key, value in values.items()}
    filters = tuple(_tables(renamed.pop("filters", []), "filter"))
    tables: dict[str, Any] = {key: _table(renamed.pop(key, {}), key) for key in ("settings", "repeat")}
    what = f"source {values.get('name', '')}".strip()
    return SourceEntry(**arguments(SourceEntry, renamed, what, without=("filters", *tables)), filters=filters, **tables)


def _tables(value: Any, name: str) -> list[Values]:
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise UserError(f"{name} must be a list of tables: [[{name}]]")
    return value


def _table(value: Any, name: str) -> Values:
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a table, got {value!r}")
    return value


def _check_filters(filters: tuple[Values, ...]) -> None:
    for each in filters:
        if each.get("name") not in FILTERS:
            raise UserError(f"no filter is called {each.get('name')!r}: {name_hint(str(each.get('name')), FILTERS)}")
