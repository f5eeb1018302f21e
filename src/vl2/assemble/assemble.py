"""Combine a language model, a SigLIP encoder and a new projector into a checkpoint with the released layout.

One tensor is in memory at a time. Every tensor of both models is either used, or left out by an explicit rule.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vl2.assemble import language_model
from vl2.assemble.settings import PROCESSOR_CONFIG, TOKENIZER_CONFIG, model_config, processor_config, tokenizer_config
from vl2.assemble.sources import TOKENIZER, Language, Vision, open_language, open_vision
from vl2.assemble.stored_part import StoredPart
from vl2.assemble.vocabulary import Vocabulary
from vl2.checkpoint.empty_model import build_empty
from vl2.checkpoint.folder import CONFIG, Progress, refuse_existing
from vl2.checkpoint.names import Place, places
from vl2.checkpoint.write import PLAIN_SHARD_BYTES, disk_errors, write_folder
from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.files import local_path
from vl2.model.init import initial_values

DTYPES = ("bfloat16", "float32", "float16")
PARTS = ("language", "vision", "projector")


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """Summary of an assembled checkpoint."""

    folder: Path
    config: ModelConfig
    vocabulary: Vocabulary
    num_bytes: int  # size of all tensors
    parameters: dict[str, int]  # number of parameters by part
    left_out: dict[str, int]  # number of stored tensors that were not used, by kind


def assemble_checkpoint(
    language: str,
    vision: str,
    out: str | Path,
    *,
    tokenizer: str | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    offline: bool = False,
    progress: Progress | None = None,
    max_shard_bytes: int = PLAIN_SHARD_BYTES,
) -> Assembled:
    """Write a new checkpoint folder from a language model and a SigLIP, each a folder, a hub id or "random:SIZE".

    `tokenizer` is a tokenizer.json or its folder, and only for a random language model; None is the built-in one. Raise
    UserError, before anything is written, if a part does not fit; it names the setting or the tensor.
    """
    out = local_path(out)
    refuse_existing(out)
    if dtype not in DTYPES:
        raise UserError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    text, sight = open_language(language, tokenizer, offline=offline), open_vision(vision, offline=offline)
    config = model_config(text, sight, dtype)
    model = build_empty(config)
    state, wanted = model.state_dict(), {place.name: place for place in places(model)}
    tensors = {name: _as_written(place, state, getattr(torch, dtype)) for name, place in wanted.items()}
    parts = _stored_parts(text, sight, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def value(name: str) -> Tensor:
        like, part = tensors[name], parts.get(name.partition(".")[0])
        if part is None:
            return _draw(wanted[name], like, config, seed).to(like.dtype)
        if name in (language_model.EMBEDDINGS, language_model.HEAD):
            table = part.read(name, (text.vocabulary.stored_rows, like.shape[1]))
            return text.vocabulary.extend(table).to(like.dtype)
        return part.read(name, tuple(like.shape)).to(like.dtype)

    def values(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        nonlocal done
        for name in names:
            yield name, value(name)  # not bound to a local name, so that the tensor is freed after it is written
            done += tensors[name].nbytes
            if progress is not None:
                progress(done, total)

    json_files = {
        CONFIG: config.to_dict(),
        PROCESSOR_CONFIG: processor_config(config),
        TOKENIZER: json.loads(text.vocabulary.tokenizer.to_json()),
        TOKENIZER_CONFIG: tokenizer_config(text, config),
    }
    with disk_errors(out):
        write_folder(out, tensors, values, json_files, [], max_shard_bytes=max_shard_bytes)
    return Assembled(
        folder=out,
        config=config,
        vocabulary=text.vocabulary,
        num_bytes=total,
        parameters={
            part: sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(f"{part}."))
            for part in PARTS
        },
        left_out={kind: len(names) for part in parts.values() for kind, names in part.left_out.items()},
    )


def _as_written(place: Place, state: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return a tensor on the meta device with the shape and type in which it is written.

    The expert bias stays float32, because training updates it in that type.
    """
    tensor = place.view(state[place.parameter])
    return tensor if place.name.endswith("e_score_correction_bias") else tensor.to(dtype)


def _stored_parts(text: Language, sight: Vision, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredPart]:
    """Return the stored tensors of the language model and the encoder, except for parts with random weights."""

    def of(part: str) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if name.startswith(f"{part}.")}

    parts: dict[str, StoredPart] = {}
    if text.folder is not None:
        origins = language_model.origins(of("language"), text.vocabulary.stored_rows)
        parts["language"] = StoredPart.of(text.folder, origins, language_model.DROPPABLE)
    if sight.siglip is not None:
        origins = sight.siglip.origins(of("vision"))
        parts["vision"] = StoredPart.of(sight.siglip.folder, origins, sight.siglip.droppable)
    return parts


def _draw(place: Place, like: Tensor, config: ModelConfig, seed: int) -> Tensor:
    """Return initial values of a tensor. Each tensor has its own seed, so its values do not depend on other tensors."""
    digest = hashlib.sha256(f"{seed} {place.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return initial_values(place.parameter, tuple(like.shape), config, generator)
