"""From the recipe and a budget to what is run: steps, rates and numbers of records, all written out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.nano.warm_up.recipe import TileOptions, WarmUpOptions, WarmUpRecipe
from vl2.errors import UserError
from vl2.files import read_toml
from vl2.train.recipe import Compute, ModelOptions, Recipe, recipe_from
from vl2.train.stage import Stage
from vl2.train.toml_file import from_table, refuse_unknown

REFERENCE_CORE_HOURS = 10  # for which the recipe's learning rates are
UPDATE_SHARE = 0.25  # of the cost of a step at the recipe's batch
WARM_UP_SHARE, LEAST_WARM_UP = 0.05, 20  # steps in which the rate rises
SAVED_EVERY_CORE_S = 360
LEAST_WORKERS = 2  # threads that prepare packs, which are idle most of the time on a CPU
TOLD_APART = "text"  # the category that has no pictures and a group of its own in a mixture
DATA, INDEX = "data", "data.toml"
TAKEN = (DATA, "export", "drawing")  # what a run has under these names is no stage
INPUTS = "{inputs}"  # in a setting: the folder of inputs


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """What is drawn, or converted from a set among the inputs."""

    category: str
    tokens: int
    draw: str = ""
    convert: str = ""
    folder: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """A stage of the recipe: either a warm-up or a training stage."""

    name: str
    why: str
    share: float
    core_seconds_per_step: float
    data: Mapping[str, float] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    warm_up: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name) or self.name in TAKEN:
            others = " or ".join(TAKEN)
            raise UserError(f"a stage's name must be letters, digits, '-' and '_', not {others}, got {self.name!r}")
        numbers = {"share": self.share, "core_seconds_per_step": self.core_seconds_per_step}
        numbers |= {f"data.{name}": share for name, share in self.data.items()}
        for name, number in numbers.items():
            if not number > 0:
                raise UserError(f"stage {self.name}: {name} must be positive, got {number:g}")


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """The file, read."""

    seed: int
    batch_power: float
    rate_power: float
    reuse: float
    sources: Mapping[str, SourceEntry]
    stages: tuple[StageEntry, ...]
    model: Mapping[str, str] = field(default_factory=lambda: {"name": "nano", "init": "random"})
    """what the first stage starts from, as in the recipe of `vl2 train`"""

    def __post_init__(self) -> None:
        if not self.reuse > 0:
            raise UserError(f"reuse must be positive, got {self.reuse:g}")


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where things are, and what they are computed on."""

    inputs: Path
    to: Path
    device: str = "cpu"
    compute: Compute = "bfloat16"
    helpers: int = 1
    """cores beside each process that trains, for drawing tiles and preparing packs; on a CPU all cores train"""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage with everything in it decided."""

    name: str
    num_steps: int
    recipe: Recipe | WarmUpRecipe
    folder: Path

    @property
    def export(self) -> Path:
        return self.folder / "export"


@dataclass(frozen=True)
class Size:
    """How long a stage is, and how much it takes at once."""

    steps: int
    batch: int


def read_run(path: Path) -> RunRecipe:
    """Read the recipe of a whole run. UserError in one line for whatever is wrong with it."""
    table = read_toml(path)
    try:
        sources, stages = _table(table.pop("source", {}), "source"), table.pop("stage", [])
        if not isinstance(stages, list):
            raise UserError(f"stage must be a list of tables, got {stages!r}")
        return replace(
            from_table(RunRecipe, {**table, "sources": {}, "stages": []}),
            sources={name: _source(entry, f"source.{name}") for name, entry in sources.items()},
            stages=tuple(_stage(entry, f"stage[{number}]") for number, entry in enumerate(stages)),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table, got {value!r}")
    return dict(value)


def _source(value: Any, where: str) -> SourceEntry:
    table = _table(value, where)
    settings = _table(table.pop("settings", {}), f"{where}.settings")
    if "from" in table:
        table["folder"] = table.pop("from")
    entry = replace(from_table(SourceEntry, table, where), settings=settings)
    if bool(entry.draw) == bool(entry.convert):
        raise UserError(f"{where} must have either draw or convert")
    for name, number in (("tokens", entry.tokens), ("most", entry.most)):
        if number is not None and number < 1:
            raise UserError(f"{where}.{name} must be at least 1, got {number}")
    return entry


def _stage(value: Any, where: str) -> StageEntry:
    """Make a stage, and check its tables with numbers in place of those that follow from the budget."""
    table = _table(value, where)
    train, warm_up = (_table(table.pop(name, {}), f"{where}.{name}") for name in ("train", "warm_up"))
    entry = replace(from_table(StageEntry, table, where), train=train, warm_up=warm_up)
    if bool(train) == bool(warm_up) or bool(train) != bool(entry.data):
        raise UserError(f"{where} must have either train and data, or warm_up")
    refuse_unknown(train, ("stage", "auxiliary_loss"), f"{where}.train")
    refuse_unknown(warm_up, ("tiles", "options"), f"{where}.warm_up")
    if train:
        inside = f"{where}.train.stage"
        planned: dict[str, Any] = {"name": entry.name, "num_steps": 1, "warmup_steps": 0}
        from_table(Stage, {**_table(train.get("stage"), inside), **planned}, inside)
    else:
        inside = f"{where}.warm_up"
        tiles, options = (_table(warm_up.get(name), f"{inside}.{name}") for name in ("tiles", "options"))
        from_table(TileOptions, {**tiles, "inputs": ""}, f"{inside}.tiles")
        from_table(WarmUpOptions, {**options, "num_steps": 1}, f"{inside}.options")
    return entry


def batch_size(run: RunRecipe, stage: StageEntry, core_hours: float) -> int:
    """Return the packs of a step, or the tiles of a warm-up, which are the same at every budget."""
    if stage.warm_up:
        return int(stage.warm_up["options"].get("batch_size", WarmUpOptions.batch_size))
    scale: float = (core_hours / REFERENCE_CORE_HOURS) ** run.batch_power
    given: int = stage.train["stage"]["batch_size"]
    return max(2, round(given * scale))


def core_seconds_per_step(run: RunRecipe, stage: StageEntry, core_hours: float) -> float:
    """Return what a step costs: a quarter of the recipe's cost is the update, and does not depend on the packs."""
    if stage.warm_up:
        return stage.core_seconds_per_step
    packs = batch_size(run, stage, core_hours) / float(stage.train["stage"]["batch_size"])
    return stage.core_seconds_per_step * (UPDATE_SHARE + (1 - UPDATE_SHARE) * packs)


def num_steps(run: RunRecipe, stage: StageEntry, core_hours: float) -> int:
    """Return the steps that a stage's part of the budget pays for."""
    return max(1, round(stage.share * core_hours * 3600 / core_seconds_per_step(run, stage, core_hours)))


def make_plans(run: RunRecipe, core_hours: float, where: Where) -> list[StagePlan]:
    """Return the stages in order; each starts from the one before, the first from the recipe's model."""
    if not 0 < core_hours < math.inf:
        raise UserError(f"the budget must be a positive number of core-hours, got {core_hours:g}")
    names = [stage.name for stage in run.stages]
    if not names or len(set(names)) < len(names):
        raise UserError(f"a recipe must have stages, each of another name, got {', '.join(names) or 'none'}")
    plans = list[StagePlan]()
    for number, stage in enumerate(run.stages):
        model = {"name": str(plans[-1].export)} if plans else dict(run.model)
        size = Size(steps=num_steps(run, stage, core_hours), batch=batch_size(run, stage, core_hours))
        make = _warm_up if stage.warm_up else _train
        recipe = make(run, stage, size, model, where, run.seed + number)
        plans.append(StagePlan(name=stage.name, num_steps=size.steps, recipe=recipe, folder=where.to / stage.name))
    return plans


def _warmup_steps(steps: int) -> int:
    return min(steps, max(LEAST_WARM_UP, round(WARM_UP_SHARE * steps)))


def _save_every(stage: StageEntry) -> int:
    return max(5, round(SAVED_EVERY_CORE_S / stage.core_seconds_per_step))


def _warm_up(
    run: RunRecipe, stage: StageEntry, size: Size, model: dict[str, str], where: Where, seed: int
) -> WarmUpRecipe:
    tiles = from_table(TileOptions, {**stage.warm_up["tiles"], "inputs": str(where.inputs)})
    schedule = {
        "num_steps": size.steps,
        "warmup_steps": _warmup_steps(size.steps),
        "raise_steps": max(1, size.steps // 4),
        "save_every_steps": _save_every(stage),
        "draw_processes": where.helpers,
    }
    return WarmUpRecipe(
        folder=str(where.to / stage.name),
        tiles=tiles,
        options=from_table(WarmUpOptions, {"log_every_steps": 20, **stage.warm_up["options"], **schedule}),
        model=from_table(ModelOptions, model),
        compute=where.compute,
        device=where.device,
        seed=seed,
    )


def _train(run: RunRecipe, stage: StageEntry, size: Size, model: dict[str, str], where: Where, seed: int) -> Recipe:
    unknown = [name for name in stage.data if name not in run.sources]
    if unknown:
        raise UserError(f"stage {stage.name}: there is no source {unknown[0]}")
    given = dict(stage.train["stage"])
    given["learning_rate"] *= (size.batch / given["batch_size"]) ** run.rate_power
    given |= {"name": stage.name, "num_steps": size.steps, "warmup_steps": _warmup_steps(size.steps)}
    given["batch_size"] = size.batch
    table: dict[str, Any] = {
        "seed": seed,
        "model": model,
        "data": {**mixture(run, stage.data, where.to / DATA), "workers": max(LEAST_WORKERS, where.helpers)},
        "stage": given,
        "engine": {"compute": where.compute, "device": where.device},
        "run": {"folder": str(where.to / stage.name), "save_every_steps": _save_every(stage), "keep": 2},
    }
    if "auxiliary_loss" in stage.train:
        table["auxiliary_loss"] = stage.train["auxiliary_loss"]
    return recipe_from(table)


def mixture(run: RunRecipe, shares: Mapping[str, float], store: Path) -> dict[str, Any]:
    """Return the data table of a recipe in which each source has its share of the tokens."""
    total = sum(shares.values())
    by_category: dict[str, float] = {}
    for name, share in shares.items():
        category = run.sources[name].category
        by_category[category] = by_category.get(category, 0.0) + share / total
    groups = []
    for is_text in (False, True):
        members = {name: share for name, share in by_category.items() if (name == TOLD_APART) == is_text}
        if members:
            of_group = sum(members.values())
            inside = {name: share / of_group for name, share in members.items()}
            groups.append({"share": of_group, "categories": inside})
    return {
        "groups": groups,
        "weights": {f"{name}/{run.sources[name].category}": share for name, share in shares.items()},
        "sources": [{"name": name, "path": str(store / f"*/{name}-*.parquet")} for name in shares],
        "spelled": [name for name in ("ocr", "table_chart", TOLD_APART) if name in by_category],
        "window_packs": 128,
    }


def num_records(run: RunRecipe, core_hours: float) -> dict[str, int]:
    """Return how many records of each source are drawn: what the stages take, over how often each is seen."""
    tokens = dict.fromkeys(run.sources, 0.0)
    for stage in run.stages:
        given = stage.train.get("stage", {})
        packs = num_steps(run, stage, core_hours) * batch_size(run, stage, core_hours)
        taken = packs * given.get("seq_len", 0)
        for name, share in stage.data.items():
            tokens[name] += taken * share / sum(stage.data.values())
    counts = {name: max(64, math.ceil(tokens[name] / run.sources[name].tokens / run.reuse)) for name in tokens}
    return {name: min(run.sources[name].most or count, count) for name, count in counts.items()}


def data_recipe(run: RunRecipe, core_hours: float, inputs: Path) -> str:
    """Return the recipe of `vl2 data build` that draws all sources."""
    lines = [f"seed = {run.seed}", 'format = "parquet"', "shard_records = 2000", ""]
    for name, count in num_records(run, core_hours).items():
        entry = run.sources[name]
        lines += ["[[source]]", f'name = "{name}"']
        if entry.convert:
            lines += [f'convert = "{entry.convert}"', f'from = "{inputs / entry.folder}"']
        else:
            own = {"inputs": INPUTS} if entry.draw.startswith("experiments.") else {}
            settings = {**own, **entry.settings}
            written = ", ".join(f"{key} = {_toml(value)}" for key, value in settings.items())
            written = written.replace(INPUTS, str(inputs))
            lines += [f'draw = "{entry.draw}"', f"count = {count}", f"settings = {{{written}}}"]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
