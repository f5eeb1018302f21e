"""The catalog of filters by name, and their construction from a user's settings.

[[filter]]
name = "repetition"
max_share = 0.3
categories = ["caption"]     # the filter applies to these only; without it, to all
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.curate.filters.decontaminate import Decontaminate, EvaluationIndex
from vl2.curate.filters.duplicate_images import DuplicateImage
from vl2.curate.filters.duplicate_texts import DuplicateText
from vl2.curate.filters.filter_chain import KEPT, Filter, OrderedFilter, Verdict
from vl2.curate.filters.record_filters import Damaged, Language, Repetition, Tiny, TooLong
from vl2.data.record import CATEGORIES, Record
from vl2.data.setting_values import Values, arguments, settings_of
from vl2.errors import UserError, name_hint
from vl2.process.processor import Processor

AnyFilter = Filter | OrderedFilter
LoadProcessor = Callable[[], Processor]


def _no_processor() -> Processor:
    raise UserError("counting tokens needs a model: give it, or set unit to characters")


def too_long(limit: int, unit: str = "tokens", *, load: LoadProcessor) -> TooLong:
    """Return the filter of long records. `load` is called only if lengths are counted in tokens."""
    if unit == "characters":
        return TooLong(limit=limit)
    if unit != "tokens":
        raise UserError(f"unit of too_long must be tokens or characters, got {unit!r}")
    return TooLong.in_tokens(limit, load())


def decontaminate(index: str, max_overlap: float = 0.5) -> Decontaminate:
    """Return the filter of records in an evaluation index; `index` is a file that `EvaluationIndex.save` wrote."""
    return Decontaminate(EvaluationIndex.load(Path(index)), max_overlap=max_overlap)


# The cheap filters come first, as they should in a chain.
FILTERS: Mapping[str, Callable[..., AnyFilter]] = {
    "tiny": Tiny,
    "repetition": Repetition,
    "language": Language,
    "duplicate_text": DuplicateText,
    "damaged": Damaged,
    "too_long": too_long,
    "duplicate_image": DuplicateImage,
    "decontaminate": decontaminate,
}
_INTERNAL = ("root", "name", "load")  # parameters that users cannot set


def filter_settings(name: str) -> list[str]:
    """Return the names of the settings of a filter."""
    return [*settings_of(FILTERS[name], without=_INTERNAL), "categories"]


def make_filters(wanted: Sequence[Values], load: LoadProcessor = _no_processor) -> list[AnyFilter]:
    """Return the filters that a list of settings describes, each with a `name`.

    Raise UserError for an unknown name or an invalid setting.
    """
    return [_make(dict(each), load) for each in wanted]


def _make(values: dict[str, Any], load: LoadProcessor) -> AnyFilter:
    name = values.pop("name", None)
    if name not in FILTERS:
        raise UserError(f"no filter is called {name!r}: {name_hint(str(name), FILTERS)}")
    categories = values.pop("categories", ())
    categories = tuple(categories.split(",")) if isinstance(categories, str) else tuple(categories)
    for category in categories:
        if category not in CATEGORIES:
            hint = name_hint(str(category), CATEGORIES)
            raise UserError(f"categories of {name}: {category!r} is not a category, {hint}")
    factory = FILTERS[name]
    checked = arguments(factory, values, f"the filter {name}", without=_INTERNAL)
    made = factory(**checked, load=load) if factory is too_long else factory(**checked)
    if not categories:
        return made
    return (
        OrderedCategoryFilter(made, categories)
        if isinstance(made, OrderedFilter)
        else CategoryFilter(inner=made, categories=categories)
    )


@dataclass(frozen=True, kw_only=True)
class CategoryFilter:
    """A filter that applies to some categories and keeps all other records."""

    inner: Filter
    categories: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.inner.name

    def __call__(self, record: Record) -> Verdict:
        return self.inner(record) if record.category in self.categories else KEPT


@dataclass(frozen=True, kw_only=True)
class _CategoryMeasure:
    inner: Callable[[Record], Any]
    categories: tuple[str, ...]

    def __call__(self, record: Record) -> tuple[Any, ...]:
        return (self.inner(record),) if record.category in self.categories else ()


class OrderedCategoryFilter(OrderedFilter):
    """An ordered filter that applies to some categories and keeps all other records."""

    def __init__(self, inner: OrderedFilter, categories: Collection[str]) -> None:
        self.name = inner.name
        self.measure = _CategoryMeasure(inner=inner.measure, categories=tuple(categories))
        self._inner = inner

    def judge(self, record_id: str, measured: Any) -> Verdict:
        return self._inner.judge(record_id, measured[0]) if measured else KEPT
