"""Plain passages of the texts, from which the language model learns to write before it sees anything."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from experiments.nano.draw.base import NanoSource
from vl2.data.record import Message, Part
from vl2.synth.draft import Draft
from vl2.synth.words import read_passages

FILES = {"en": "en", "zh": "zh", "definitions": "en", "manuals": "zh"}  # with their languages
SHORT, JOINED = 200, 4  # letters below which passages are told several at once


@dataclass(frozen=True, kw_only=True)
class Passages(NanoSource):
    """Tasks are the files: "en" and "zh" encyclopedias, "definitions" of English words, "manuals" in Chinese."""

    name = "nano_passages"
    category = "text"
    tasks_known: ClassVar[tuple[str, ...]] = tuple(FILES)

    def draft(self, rng: random.Random) -> Draft:
        task = self.pick_task(rng)
        passages = read_passages(str(Path(self.inputs) / f"text/{task}.txt"))
        first = rng.choice(passages)
        chosen = [first, *(rng.choice(passages) for _ in range(JOINED))] if len(first) < SHORT else [first]
        draft = Draft(language=FILES[task])
        draft.messages.append(Message(role="document", parts=(Part(text="\n".join(chosen)),)))
        return draft
