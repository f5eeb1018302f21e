"""A recipe: everything that one training run depends on, as one value, read from TOML and from the command line.

The stage is written out, or taken from the paper's table by `like = "tiny/alignment"` with the values that differ:

    [stage]
    like = "tiny/alignment"
    batch_size = 32

The resolved recipe, every value written out, is saved beside each checkpoint and starts the same run again.
Importing this loads neither PyTorch nor NumPy: the command line reads it to answer `--help`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vl2.errors import UserError
from vl2.files import read_toml
from vl2.train.adapter_options import AdapterOptions
from vl2.train.loss_spike import LossSpikeOptions
from vl2.train.stage import STAGES, Stage
from vl2.train.toml_file import from_table, refuse_unknown, to_toml

if TYPE_CHECKING:
    from vl2.data.mixture import Mixture

Compute = Literal["float32", "bfloat16"]
Init = Literal["weights", "random"]
Mode = Literal["replicated", "sharded"]
SplitKind = Literal["looped", "contiguous", "encoder_first"]
EncoderRecompute = Literal["none", "blocks", "whole"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained."""

    name: str
    """"nano", "tiny", "small", "base", a checkpoint folder, or a hub id"""
    init: Init = "weights"
    """start from the checkpoint's weights, or from random ones of its shape"""
    processor: str = ""
    """folder or hub id of the tokenizer and processor_config.json, where the model has none"""
    preset: str = ""
    """size whose shape a dry run takes while the checkpoint is not here"""

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("model.name is empty: give a size, a checkpoint folder or a hub id")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """One store of records."""

    name: str
    """how metrics and the mixture call it"""
    path: str
    """file, folder, glob or URL; .parquet, .tar or .jsonl"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise UserError(f"the name of a source must be letters, digits, '-', '_' and '.', got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Categories that share one part of all tokens."""

    share: float
    categories: Mapping[str, float]
    """relative weights inside the group"""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What it is trained on, and in which shares."""

    sources: tuple[SourceOptions, ...] = ()
    mixture: str = ""
    """a stage whose mixture is used; the recipe's own stage where empty and without groups"""
    groups: tuple[GroupOptions, ...] = ()
    """a mixture of one's own"""
    only_present: bool = False
    """leave out categories of the mixture that no source has, instead of refusing"""
    temperature: float = 1.0
    """1 goes through all sources of a category evenly, more favors small ones"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """weights of sources inside their category, by "name/category" """
    spelled: tuple[str, ...] = ()
    """categories whose answers are character-level targets, encoded by character: so a small model learns to read"""
    window_packs: int = 512
    """packs planned at a time"""
    workers: int = 2
    """threads that make packs ahead; 0 makes each when it is needed"""
    read_ahead: int = 8
    """packs made ahead"""

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise UserError(f"data.sources must have different names, got {', '.join(names)}")
        if self.mixture and self.groups:
            raise UserError("data: give either mixture or groups")
        if self.spelled:
            self._check_spelled()

    def _check_spelled(self) -> None:
        from vl2.data.record import CATEGORIES

        unknown = [category for category in self.spelled if category not in CATEGORIES]
        if unknown:
            raise UserError(f"data.spelled must be of {', '.join(CATEGORIES)}, got {unknown[0]!r}")

    def make_mixture(self, stage: str) -> Mixture:
        """Return the mixture that is named or given; a stage of one's own must give it."""
        from vl2.data.mixture import STAGE_MIXTURES, Group, Mixture

        if self.groups:
            groups = tuple(Group(share=group.share, categories=group.categories) for group in self.groups)
            return Mixture(groups=groups, temperature=self.temperature, sources=self.weights)
        name = self.mixture or stage
        if name not in STAGE_MIXTURES:
            raise UserError(
                f"data.mixture must be one of {', '.join(STAGE_MIXTURES)}, got {name!r}; or give data.groups"
            )
        return dataclasses.replace(STAGE_MIXTURES[name], temperature=self.temperature, sources=self.weights)


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLossOptions:
    """A loss of one's own beside that of the next token."""

    function: str = ""
    """MODULE:NAME of what makes it from the model and the processor; none where empty"""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"auxiliary_loss.weight must be positive, got {self.weight:g}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How it is computed. Of these only `compute` changes more than rounding."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    compute: Compute = "bfloat16"
    """type of weights and activations; masters and sums stay float32"""
    activation_checkpointing: bool = False
    """compute activations again in the backward pass instead of keeping them, block by block"""
    encoder_recompute: Literal["auto", "none", "blocks", "whole"] = "auto"
    """the encoder's: none, blocks, or whole, which keeps its tiles alone; auto goes by activation_checkpointing"""
    compile: bool = False
    """compile the encoder's blocks with torch.compile: for CUDA devices, on a CPU it costs more than it brings"""
    parallel: Mode = "replicated"
    """with several ranks: every rank the whole model, or its part of each weight"""
    balance_tiles: int = 0
    """packs of each rank whose tiles are encoded by all ranks alike; 0: every rank encodes its own"""
    expert_parallel: int = 1
    """ranks that share one set of experts, each holding some of them whole; needs parallel = "sharded" """

    pipeline: int = 1
    """ranks that the layers are divided among; needs parallel = "sharded" """
    pipeline_cut: SplitKind = "looped"
    """looped: every rank a part of the encoder and of the language model; contiguous; encoder_first, to compare"""
    pipeline_costs: str = ""
    """file of measured costs that say where to cut; by formula where empty"""
    timeout_s: float = 1800.0
    """how long a rank waits for another before it gives up"""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UserError(f"engine.timeout_s must be positive, got {self.timeout_s:g}")
        if self.pipeline < 1:
            raise UserError(f"engine.pipeline must be at least 1, got {self.pipeline}")
        if self.pipeline > 1 and self.parallel != "sharded":
            raise UserError('engine.pipeline needs engine.parallel = "sharded"')
        if self.pipeline > 1 and self.recomputed_encoder == "whole":
            raise UserError('engine.pipeline cuts through the encoder: encoder_recompute must be "blocks" or "none"')
        if self.balance_tiles < 0:
            raise UserError(f"engine.balance_tiles must not be negative, got {self.balance_tiles}")
        if self.expert_parallel < 1:
            raise UserError(f"engine.expert_parallel must be at least 1, got {self.expert_parallel}")
        if self.expert_parallel > 1 and self.parallel != "sharded":
            raise UserError('engine.expert_parallel needs engine.parallel = "sharded"')

    @property
    def recomputed_encoder(self) -> EncoderRecompute:
        if self.encoder_recompute == "auto":
            return "blocks" if self.activation_checkpointing else "none"
        return self.encoder_recompute


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """What is answered greedily during training: held-out records, or a task of `vl2 eval`."""

    name: str
    """of the figures; without a path, the task, such as count_objects"""
    path: str = ""
    """held-out records: scored by exact match, and boxes at IoU 0.5"""
    data: str = ""
    """where the files of a task lie; those that are drawn need none"""
    num_records: int = 64
    """the first so many"""
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.path and self.data:
            raise UserError(f"run.tasks {self.name}: give path for records, or data for a task of vl2 eval, not both")
        if self.num_records < 1 or self.max_new_tokens < 1:
            raise UserError(f"run.tasks {self.name}: num_records and max_new_tokens must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run lives, and what it leaves there."""

    folder: str
    save_every_steps: int = 500
    keep: int = 3
    """newest checkpoints that stay"""
    keep_every_steps: int | None = None
    """checkpoints at multiples of this stay for ever"""
    log_every_steps: int = 10
    """of lines where there is no terminal; metrics.jsonl has every step"""
    evaluate_every_steps: int | None = None
    """and at the end"""
    tasks: tuple[EvaluationTask, ...] = ()
    minutes: float | None = None
    """save and stop after so many; --resume goes on"""
    trackers: tuple[TrackerName, ...] = ()
    """tensorboard, wandb, trackio"""
    export: bool = True
    """write FOLDER/export, which the next stage starts from, at the end"""

    def __post_init__(self) -> None:
        if not self.folder:
            raise UserError("run.folder is empty: say where the run shall live")
        for name in (
            "save_every_steps",
            "keep",
            "keep_every_steps",
            "log_every_steps",
            "evaluate_every_steps",
            "minutes",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"run.{name} must be positive, got {value:g}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    model: ModelOptions
    stage: Stage
    run: RunOptions
    data: DataOptions = field(default_factory=DataOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    guard: LossSpikeOptions = field(default_factory=LossSpikeOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    auxiliary_loss: AuxiliaryLossOptions = field(default_factory=AuxiliaryLossOptions)
    seed: int = 0
    """of random weights and of the order of the data"""

    def __post_init__(self) -> None:
        if self.adapter.is_used and self.engine.parallel == "sharded":
            raise UserError('an adapter needs engine.parallel = "replicated": every rank holds the whole model')
        if self.adapter.is_used and self.stage.expert_bias_step:
            raise UserError("an adapter leaves the experts' bias as it is: stage.expert_bias_step must be 0")
        for name, value in _numbers(dataclasses.asdict(self)):
            if not math.isfinite(value):
                raise UserError(f"{name} must be a finite number, got {value:g}")

    def to_toml(self) -> str:
        return to_toml(self)


def read_recipe(path: Path | str) -> Recipe:
    """Read a recipe. UserError in one line for whatever is wrong with it."""
    try:
        return recipe_from(read_toml(path))
    except UserError as error:
        text = str(error)
        raise UserError(text if str(path) in text else f"{path}: {text}") from None


def recipe_from(table: Mapping[str, Any]) -> Recipe:
    """Make a recipe from the tables of a TOML file."""
    table = dict(table)
    stage = table.get("stage")
    if isinstance(stage, dict):
        table["stage"] = _fill_stage(stage)
    return from_table(Recipe, table)


def changes(before: Recipe, after: Recipe) -> list[str]:
    """Return what differs between two recipes beside where and how the run is kept, one line for each value."""
    old, new = _flat(dataclasses.asdict(before)), _flat(dataclasses.asdict(after))
    names = [name for name in {**old, **new} if not name.startswith("run.") and old.get(name) != new.get(name)]
    return [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names]


def paper_stage(name: str) -> Stage:
    """Return a stage of the paper's table by "size/stage"."""
    known = [f"{size}/{stage}" for size, stages in STAGES.items() for stage in stages]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise UserError(f"stage.like must be SIZE/STAGE, got {name!r}: {hint}")
    size, _, stage = name.partition("/")
    return STAGES[size][stage]


def _fill_stage(given: dict[str, Any]) -> dict[str, Any]:
    """Return the table of a stage with what it leaves out taken from the one that it is like."""
    given = dict(given)
    like = given.pop("like", None)
    if like is None:
        return given
    if not isinstance(like, str):
        raise UserError(f"stage.like must be SIZE/STAGE, got {like!r}")
    base = paper_stage(like)
    names = [one.name for one in dataclasses.fields(base)]
    refuse_unknown(given, [*names, "like"], "stage")
    values = {name: getattr(base, name) for name in names}
    if {"num_steps", "num_tokens"} & given.keys():  # one gives the length, so it takes the other's place
        values["num_steps"] = values["num_tokens"] = None
    plain = {name: _plain(value) for name, value in values.items() if value is not None}
    return {**plain, **given}


def _plain(value: Any) -> Any:
    """Return a value as TOML would have it."""
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Yield all numbers in nested tables and lists, by their dotted names."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _numbers(one, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from _numbers(one, f"{where}[{i}]")
    elif isinstance(value, float):
        yield where, value


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return flat
