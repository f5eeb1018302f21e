"""Find the language model and the encoder that the user names: a folder, a hub id, or "random:SIZE"."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.assemble.language_model import language_config
from vl2.assemble.siglip import Siglip, is_timm
from vl2.assemble.vocabulary import Vocabulary
from vl2.checkpoint.folder import CONFIG
from vl2.checkpoint.resolve import built_in_folder, locate_other_model
from vl2.config import PRESETS, Json, preset
from vl2.errors import UserError
from vl2.files import local_path
from vl2.process.tokenizer import BOS, EOS

RANDOM = "random"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Language:
    """A language model that a new checkpoint will be made from."""

    folder: Path | None  # None for random weights
    config: Json  # language_config of our config.json, except for the size of the vocabulary
    tokenizer_file: Path
    vocabulary: Vocabulary


@dataclass(frozen=True, kw_only=True)
class Vision:
    """An encoder that a new checkpoint will be made from."""

    siglip: Siglip | None  # None for random weights
    config: Json  # vision_config of our config.json


def open_language(name: str, tokenizer: str | None, *, offline: bool) -> Language:
    """Find a language model. Raise UserError, before its weights are downloaded, if it does not fit."""
    size = _random_size(name)
    if size is not None:
        path = built_in_folder() if tokenizer is None else local_path(tokenizer)
        file = path / TOKENIZER if path.is_dir() else path
        config = preset(size).to_dict()["language_config"]
        rows = preset(size).language_config.vocab_size
        return Language(folder=None, config=config, tokenizer_file=file, vocabulary=Vocabulary.of(file, rows))
    if tokenizer is not None:
        raise UserError("--tokenizer is for a random language model: any other brings its own")
    folder = locate_other_model(name, offline=offline, needs_weights=False)
    values = _read_config(folder)
    config = language_config(folder, values)
    vocabulary = Vocabulary.of(folder / TOKENIZER, values["vocab_size"])
    for key, token in (("bos_token_id", BOS), ("eos_token_id", EOS)):
        id = vocabulary.tokenizer.special_ids[token]
        if values[key] != id:
            raise UserError(f"{folder}: {key} is {values[key]} in config.json, and {token} is {id} in {TOKENIZER}")
    folder = locate_other_model(name, offline=offline)
    return Language(folder=folder, config=config, tokenizer_file=folder / TOKENIZER, vocabulary=vocabulary)


def open_vision(name: str, *, offline: bool) -> Vision:
    """Find an encoder. Raise UserError, before its weights are downloaded, if it is not a SigLIP."""
    size = _random_size(name)
    if size is not None:
        return Vision(siglip=None, config=preset(size).to_dict()["vision_config"])
    folder = locate_other_model(name, offline=offline, needs_weights=False)
    values = _read_config(folder)
    is_timm(folder, values)
    siglip = Siglip.of(locate_other_model(name, offline=offline), values)
    return Vision(siglip=siglip, config=siglip.vision_config)


def _random_size(name: str) -> str | None:
    if name != RANDOM and not name.startswith(f"{RANDOM}:"):
        return None
    size = name.partition(":")[2]
    if size not in PRESETS:
        allowed = ", ".join(f"{RANDOM}:{each}" for each in PRESETS)
        raise UserError(f"random weights must be of a size ({allowed}), got {name!r}")
    return size


def _read_config(folder: Path) -> Json:
    try:
        values: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {CONFIG} in {folder}") from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{folder / CONFIG} must hold a JSON object, got {type(values).__name__}")
    return values
