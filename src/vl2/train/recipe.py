"""The recipe: all settings of a training run as one value, read from TOML and the command line.

The stage is given in full, or based on a stage of the paper's table by `like`, with the values that differ:

    [stage]
    like = "tiny/alignment"
    batch_size = 32

The resolved recipe, with all values, is saved in each checkpoint and starts the same run again. The docstring or
comment of a field is its help text on the command line and in the documentation. Importing this module loads neither
PyTorch nor NumPy, because `--help` needs it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vl2.errors import UserError, name_hint
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
PipelineSchedule = Literal["1f1b", "zero_bubble"]
Fp8 = Literal["off", "on", "emulated"]
EncoderRecompute = Literal["none", "blocks", "whole"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model to train."""

    name: str
    """"nano", "tiny", "small", "base", a checkpoint folder, or a hub id"""
    init: Init = "weights"
    """start from the checkpoint's weights, or from random weights of its shape"""
    processor: str = ""
    """folder or hub id of the tokenizer and processor_config.json, if the model has none"""
    preset: str = ""
    """size that a dry run assumes if the checkpoint is not available"""

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("model.name is empty: give a size, a checkpoint folder or a hub id")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """One store of records."""

    name: str
    """its name in metrics and in the mixture"""
    path: str
    """file, folder, glob or URL; .parquet, .tar or .jsonl"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise UserError(f"the name of a source must be letters, digits, '-', '_' and '.', got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Categories that share one fraction of all tokens."""

    share: float
    categories: Mapping[str, float]
    """relative weights inside the group"""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The training data and their mixture."""

    sources: tuple[SourceOptions, ...] = ()
    mixture: str = ""
    """the stage whose mixture is used; empty for the recipe's own stage, or for groups"""
    groups: tuple[GroupOptions, ...] = ()
    """a custom mixture"""
    only_present: bool = False
    """leave out categories of the mixture that no source has, instead of an error"""
    temperature: float = 1.0
    """1 repeats all sources of a category equally often, higher values favor small sources"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """weights of sources inside their category, by "name/category" """
    spelled: tuple[str, ...] = ()
    """categories whose answers are tokenized by character, from which a small model learns to read"""
    window_packs: int = 512
    """packs planned at a time"""
    workers: int = 2
    """threads that prepare packs in advance; 0 prepares each pack on demand"""
    read_ahead: int = 8
    """packs prepared in advance"""

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
        """Return the mixture of `groups`, or the one named by `mixture` or the stage.

        Raise UserError if there is no mixture of that name.
        """
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
    """A custom loss in addition to the next-token loss."""

    function: str = ""
    """MODULE:NAME of a function that makes the loss from the model and the processor; empty for none"""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"auxiliary_loss.weight must be positive, got {self.weight:g}")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the training is computed. Only `compute` affects results by more than rounding."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    compute: Compute = "bfloat16"
    """type of weights and activations; masters and sums stay float32"""
    fp8: Fp8 = "off"
    """matrix products of dense layers in FP8, on cards that have it; emulated: rounded alike, on any device, slow"""
    activation_checkpointing: bool = False
    """recompute the activations of each block in the backward pass instead of keeping them"""
    encoder_recompute: Literal["auto", "none", "blocks", "whole"] = "auto"
    """in the encoder: none, blocks, or whole, which keeps only its tiles; auto follows activation_checkpointing"""
    compile: bool = False
    """compile the encoder's blocks with torch.compile; this pays off on CUDA devices, not on a CPU"""
    parallel: Mode = "replicated"
    """with several ranks: every rank holds the whole model (replicated) or a part of each weight (sharded)"""
    balance_tiles: int = 0
    """packs of each rank whose tiles are balanced over all ranks at a time; 0: every rank encodes its own tiles"""
    expert_parallel: int = 1
    """ranks that divide one set of experts among themselves; needs parallel = "sharded" """

    tensor_parallel: int = 1
    """ranks that run the same packs and divide every layer among themselves; needs parallel = "sharded" """

    pipeline: int = 1
    """ranks among which the layers are divided; needs parallel = "sharded" """
    pipeline_cut: SplitKind = "looped"
    """looped: every rank has a part of encoder and language model; contiguous; encoder_first, for comparison"""
    pipeline_schedule: PipelineSchedule = "1f1b"
    """1f1b, or zero_bubble, which computes gradients of weights where a rank would wait"""
    pipeline_costs: str = ""
    """file of measured costs by which the pipeline is split; empty for a formula"""
    timeout_s: float = 1800.0
    """how long a rank waits for another before it fails"""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UserError(f"engine.timeout_s must be positive, got {self.timeout_s:g}")
        if self.pipeline < 1:
            raise UserError(f"engine.pipeline must be at least 1, got {self.pipeline}")
        if self.pipeline > 1 and self.parallel != "sharded":
            raise UserError('engine.pipeline needs engine.parallel = "sharded"')
        if self.pipeline > 1 and self.recomputed_encoder == "whole":
            raise UserError('engine.pipeline cuts through the encoder: encoder_recompute must be "blocks" or "none"')
        if self.pipeline_schedule == "zero_bubble" and (
            self.activation_checkpointing or self.recomputed_encoder != "none"
        ):
            raise UserError(
                'engine.pipeline_schedule = "zero_bubble" runs two backward passes over kept activations: '
                'activation_checkpointing must be false and encoder_recompute "none"'
            )
        if self.balance_tiles < 0:
            raise UserError(f"engine.balance_tiles must not be negative, got {self.balance_tiles}")
        if self.expert_parallel < 1:
            raise UserError(f"engine.expert_parallel must be at least 1, got {self.expert_parallel}")
        if self.expert_parallel > 1 and self.parallel != "sharded":
            raise UserError('engine.expert_parallel needs engine.parallel = "sharded"')
        if self.tensor_parallel < 1:
            raise UserError(f"engine.tensor_parallel must be at least 1, got {self.tensor_parallel}")
        if self.tensor_parallel > 1 and self.parallel != "sharded":
            raise UserError('engine.tensor_parallel needs engine.parallel = "sharded"')

    @property
    def recomputed_encoder(self) -> EncoderRecompute:
        if self.encoder_recompute == "auto":
            return "blocks" if self.activation_checkpointing else "none"
        return self.encoder_recompute


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """An evaluation during training with greedy answers: held-out records, or a task of `vl2 eval`."""

    name: str
    """its name in the metrics; without a path, the name of a task such as count_objects"""
    path: str = ""
    """held-out records, scored by exact match and by boxes at IoU 0.5"""
    data: str = ""
    """folder of a task's files; drawn tasks need none"""
    num_records: int = 64
    """the number of records or items to use"""
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.path and self.data:
            raise UserError(f"run.tasks {self.name}: give path for records, or data for a task of vl2 eval, not both")
        if self.num_records < 1 or self.max_new_tokens < 1:
            raise UserError(f"run.tasks {self.name}: num_records and max_new_tokens must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The run folder, and when to save, log and evaluate."""

    folder: str
    save_every_steps: int = 500
    keep: int = 3
    """number of newest checkpoints to keep"""
    keep_every_steps: int | None = None
    """also keep all checkpoints at multiples of this"""
    checkpoints: str = ""
    """URL to which checkpoints are copied, such as s3://BUCKET/NAME; resuming reads it if the folder has none"""
    log_every_steps: int = 10
    """interval of log lines without a terminal; metrics.jsonl has every step"""
    evaluate_every_steps: int | None = None
    """interval of evaluations, which also run at the end"""
    tasks: tuple[EvaluationTask, ...] = ()
    minutes: float | None = None
    """save and stop after this time; --resume continues"""
    trackers: tuple[TrackerName, ...] = ()
    """tensorboard, wandb, trackio"""
    export: bool = True
    """write FOLDER/export at the end, from which the next stage can start"""

    def __post_init__(self) -> None:
        if not self.folder:
            raise UserError("run.folder is empty: give a folder for the run")
        if "://" in self.folder:
            raise UserError(f"run.folder must be a local folder, got {self.folder}: a URL goes in run.checkpoints")
        if self.checkpoints and not re.fullmatch(r"[\w+.-]+://.*[^/].*", self.checkpoints):
            raise UserError(f"run.checkpoints must be a URL such as s3://BUCKET/NAME, got {self.checkpoints!r}")
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
    """All settings of one training run."""

    model: ModelOptions
    stage: Stage
    run: RunOptions
    data: DataOptions = field(default_factory=DataOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    guard: LossSpikeOptions = field(default_factory=LossSpikeOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    auxiliary_loss: AuxiliaryLossOptions = field(default_factory=AuxiliaryLossOptions)
    seed: int = 0
    """seed of random weights and of the order of the data"""

    def __post_init__(self) -> None:
        if self.adapter.is_used and self.engine.parallel == "sharded":
            raise UserError('an adapter needs engine.parallel = "replicated": every rank holds the whole model')
        if self.stage.objective == "preference":
            if not self.adapter.is_used:
                raise UserError(
                    'stage.objective = "preference" trains an adapter, because the reference is the model without it: '
                    'adapter.method must be "lora" or "qlora"'
                )
            if self.auxiliary_loss.function or self.stage.balance_loss_weight:
                raise UserError('stage.objective = "preference" has no auxiliary loss and no balance loss')
            if self.engine.balance_tiles:
                raise UserError('stage.objective = "preference" encodes tiles twice: engine.balance_tiles must be 0')
        if self.adapter.is_used and self.stage.expert_bias_step:
            raise UserError("an adapter leaves the experts' bias as it is: stage.expert_bias_step must be 0")
        for name, value in _numbers(dataclasses.asdict(self)):
            if not math.isfinite(value):
                raise UserError(f"{name} must be a finite number, got {value:g}")

    def to_toml(self) -> str:
        return to_toml(self)


def read_recipe(path: Path | str) -> Recipe:
    """Read a recipe from a TOML file. Raise a UserError that names the file if anything in it is not valid."""
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
    """Return the differences between two recipes, except those in `run`, one line for each value."""
    old, new = _flat(dataclasses.asdict(before)), _flat(dataclasses.asdict(after))
    names = [name for name in {**old, **new} if not name.startswith("run.") and old.get(name) != new.get(name)]
    return [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names]


def paper_stage(name: str) -> Stage:
    """Return a stage of the paper's table by its name "size/stage". Raise UserError for an unknown name."""
    known = [f"{size}/{stage}" for size, stages in STAGES.items() for stage in stages]
    if name not in known:
        raise UserError(f"stage.like must be SIZE/STAGE, got {name!r}: {name_hint(name, known)}")
    size, _, stage = name.partition("/")
    return STAGES[size][stage]


def _fill_stage(given: dict[str, Any]) -> dict[str, Any]:
    """Complete the table of a stage with the values of the stage that `like` names."""
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
    if {"num_steps", "num_tokens"} & given.keys():  # either gives the length, so it replaces both
        values["num_steps"] = values["num_tokens"] = None
    plain = {name: _plain(value) for name, value in values.items() if value is not None}
    return {**plain, **given}


def _plain(value: Any) -> Any:
    """Return a value as the TOML reader would return it."""
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Yield all floats in nested tables and lists with their dotted names."""
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
