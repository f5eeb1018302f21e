"""The checkpoint that is verified: where it lies, which size it is, and what a released size must be.

Token ids: those that users' logs of the released models show, and that the tokenizers published on PyPI give once the
released processor has added its special tokens.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vl2.checkpoint.folder import INDEX, SINGLE
from vl2.checkpoint.quantization_config import QuantizationConfig
from vl2.checkpoint.resolve import BUILT_IN, HUB_ID, RELEASED, built_in_folder
from vl2.config import PRESETS, ModelConfig, preset
from vl2.errors import UserError
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.tokenizer import ASSISTANT, BOS, EOS, GROUNDING, IMAGE, PAD, USER

PARTS = ("language_config", "vision_config", "projector_config")
# Read by the trainer alone: another value changes no answer.
TRAINING_ONLY = frozenset(f"language_config.{key}" for key in ("aux_loss_alpha", "seq_aux", "initializer_range"))
# The presets differ from each other in 15 fields and more.
MOST_DIFFERENT_FIELDS = 6

ADDED = (IMAGE, *GROUNDING, USER, ASSISTANT)  # in the order of their ids, which follow each other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Special tokens of a size, and how many ids there are with them."""

    ids: dict[str, int]
    num_ids: int


def _vocabulary(bos: int, eos: int, pad: int, first_added: int) -> Vocabulary:
    ids = {BOS: bos, EOS: eos, PAD: pad, **{token: first_added + i for i, token in enumerate(ADDED)}}
    return Vocabulary(ids=ids, num_ids=first_added + len(ADDED))


VOCABULARIES = {
    "tiny": _vocabulary(0, 1, 2, 128815),
    "small": _vocabulary(100000, 100001, 100002, 100003),
    "base": _vocabulary(0, 1, 2, 128815),
    "nano": _vocabulary(0, 1, 2, 4088),
}


def fields_of(config: ModelConfig) -> dict[str, Any]:
    """Return what shapes a model, by dotted key."""
    return {
        f"{part}.{key}": value for part in PARTS for key, value in dataclasses.asdict(getattr(config, part)).items()
    }


def nearest_size(config: ModelConfig) -> tuple[str, int]:
    """Return the size that a configuration differs from in the fewest fields, and in how many."""
    ours = fields_of(config)
    distances = {name: sum(ours[key] != value for key, value in fields_of(preset(name)).items()) for name in PRESETS}
    name = min(distances, key=distances.__getitem__)
    return name, distances[name]


def processor_settings(size: str) -> PreprocessConfig:
    """Return what processor_config.json of a size says."""
    folder = built_in_folder() if size == "nano" else Path(str(resources.files("vl2") / "presets"))
    return PreprocessConfig.from_dict(json.loads((folder / "processor_config.json").read_text(encoding="utf-8")))


HUB_CACHE = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{7,40})$")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint folder. What cannot be read is None, with the reason in `fault`."""

    folder: Path
    label: str  # what the page calls it
    named_size: str | None  # the size that its name promises
    size: str | None  # the size that it is checked against; None for a model of another shape
    config: ModelConfig | None
    fault: str  # why config.json cannot be used, "" where it can
    values: dict[str, Any]  # what config.json says
    is_settings_only: bool  # of the hub, with what reads no weights downloaded and not all of the rest

    @classmethod
    def of(cls, target: str, folder: Path, *, needs_weights: bool = True) -> Subject:
        label = label_of(target, folder)
        sizes = {BUILT_IN: BUILT_IN, **{hub_id: size for size, hub_id in RELEASED.items()}}
        named = sizes.get(label.partition(" at ")[0])
        config, fault = None, ""
        try:
            config = ModelConfig.from_file(folder / "config.json")
        except UserError as error:
            fault = str(error)
        except (TypeError, ValueError, AttributeError) as error:  # a value of a type that nobody expected
            fault = f"config.json has a value that cannot be used: {error}"
        if config is not None:
            config.require_deepseek_vl2("verify")
        size = named
        if config is not None and named is None:
            nearest, distance = nearest_size(config)
            size = nearest if distance <= MOST_DIFFERENT_FIELDS else None
        return cls(
            folder=folder,
            label=label,
            named_size=named,
            size=size,
            config=config,
            fault=fault,
            values=_values(folder / "config.json"),
            is_settings_only=not needs_weights and HUB_CACHE.search(str(folder)) is not None and not _is_whole(folder),
        )

    @property
    def expected(self) -> ModelConfig | None:
        """The configuration that the files must fit: the size's, or its own where it has none."""
        return self.config if self.size is None else preset(self.size)

    @property
    def record(self) -> QuantizationConfig | None:
        """What config.json says about quantized weights. UserError for what this package cannot read."""
        return None if self.config is None else QuantizationConfig.of(self.config, self.folder)


def label_of(target: str, folder: Path) -> str:
    """Return what may be told of where a checkpoint comes from: its id on the hub, or the folder's own name."""
    if target == BUILT_IN:
        return BUILT_IN
    cached = HUB_CACHE.search(str(folder))
    if cached is not None:
        return f"{cached['id'].replace('--', '/')} at {cached['commit'][:12]}"
    if HUB_ID.fullmatch(target) and not Path(target).exists():
        return target
    return f"folder {folder.resolve().name}"


def index_names(path: Path) -> dict[str, str]:
    """Return which file each tensor is in. UserError where the index cannot be read."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path.name} is not a valid index: {error!r}") from None


def _is_whole(folder: Path) -> bool:
    if not (folder / INDEX).is_file():
        return (folder / SINGLE).is_file()
    try:
        return all((folder / file).is_file() for file in index_names(folder / INDEX).values())
    except UserError:
        return True  # a fault, to be told as one


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
