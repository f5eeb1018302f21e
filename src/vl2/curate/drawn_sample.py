"""Draw a few records of synthetic sources, to look at and to measure before a whole stage is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vl2.curate.stage_recipe import StageRecipe
from vl2.data.record import Record
from vl2.data.setting_values import Values
from vl2.synth.catalog import make_source
from vl2.synth.source import generate


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Drawn records, whose source is the name of the recipe's entry."""

    name: str
    records: tuple[Record, ...]
    planned: int | None  # number of records that the recipe asks for


def sample_recipe(recipe: StageRecipe, count: int, processes: int) -> Iterator[Sample]:
    """Draw `count` records of every drawn source of a recipe, with its seed, split between the runs of the source."""
    for entry in recipe.sources:
        if not entry.draw:
            continue
        runs, made = entry.runs(), list[Record]()
        seed = recipe.seed if entry.seed is None else entry.seed
        for number, settings in enumerate(runs):
            share = count // len(runs) + (number < count % len(runs))
            drawn = generate(make_source(entry.draw, settings), share, seed, processes)
            made += (replace(r, id=f"{entry.name}/{number}/{r.id}", source=entry.name) for r in drawn)
        yield Sample(name=entry.name, records=tuple(made), planned=entry.count)


def sample_source(name: str, settings: Values, count: int, seed: int, processes: int) -> Sample:
    """Draw `count` records of one source."""
    drawn = generate(make_source(name, settings), count, seed, processes)
    return Sample(name=name, records=tuple(drawn), planned=None)
