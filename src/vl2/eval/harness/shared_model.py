"""Load a model and answer conversations in batches; shared by both harness plug-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, Request, load
from vl2.process.conversation import Turn


def load_model(name: str, *, device: str, dtype: str, batch_size: int, max_tiles: int | None) -> VLM:
    vlm = load(name, device=device, dtype=dtype, max_tiles=max_tiles)
    vlm.limits = replace(vlm.limits, max_num_seqs=batch_size)
    return vlm


def options_of(settings: Mapping[str, Any], default_tokens: int) -> GenerateOptions:
    """Convert the generation settings of the harnesses. Without a temperature decoding is greedy."""
    temperature = settings.get("temperature") if settings.get("do_sample", True) else 0
    until = settings.get("until") or ()
    return GenerateOptions(
        max_new_tokens=int(settings.get("max_new_tokens") or default_tokens),
        temperature=float(temperature or 0),
        top_p=float(settings.get("top_p") or 1) if temperature else 1.0,
        stop=tuple(text for text in ((until,) if isinstance(until, str) else until) if text.strip()),
        seed=0,
    )


def answer(vlm: VLM, conversations: Sequence[Sequence[Turn]], options: Sequence[GenerateOptions]) -> list[str]:
    """Return the texts of the answers to the conversations."""
    requests = [Request(messages=turns, options=o) for turns, o in zip(conversations, options, strict=True)]
    return [reply.text for reply in vlm.batch(requests)]
