"""Make interleaved documents, in which images and texts about them alternate, without questions."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from vl2.data.record import Message, Part
from vl2.synth import words
from vl2.synth.draft import Draft
from vl2.synth.scene import Composed, Scene, caption
from vl2.synth.source import UNKNOWN_LICENCE, Source
from vl2.synth.sprites import Kind, things

MAX_PASSAGE = 700  # characters
MIN_NAME_ZH = 2  # characters; a single character also occurs within other words
TITLES = {
    "en": ("A small picture book", "Look and read", "Pictures", "What I saw today"),
    "zh": ("看图识物", "图画书", "今天看到的东西", "图片"),
}


@dataclass(frozen=True, kw_only=True)
class Album(Source):
    """Documents with two to five images. Given texts provide passages that name the thing in an image."""

    name = "album"
    category = "interleaved"
    tasks_known: ClassVar[tuple[str, ...]] = ("before", "after")  # position of an image relative to its text

    scene: Scene = field(default_factory=Scene)
    texts_en: str | None = None  # path of a text file with one passage per line
    texts_zh: str | None = None

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.texts_en or self.texts_zh else self.scene.own_licence()

    def draft(self, rng: random.Random) -> Draft:
        language, task = rng.choice(self.scene.languages), self.pick_task(rng)
        draft = Draft(language=language, traits={"task": task})
        parts = [Part(text=f"{rng.choice(TITLES[language])}\n\n")]
        count = rng.randint(2, 5)
        for number in range(count):
            composed, text = self._picture(rng, language)
            picture = Part(image=draft.picture(composed.image))
            end = "" if number == count - 1 else "\n\n"
            if task == "before":
                parts += [picture, Part(text=f"\n\n{text}{end}")]
            else:
                parts += [Part(text=f"{text}\n\n"), picture, *([Part(text=end)] if end else [])]
        draft.messages.append(Message(role="document", parts=tuple(parts)))
        return draft

    def _picture(self, rng: random.Random, language: str) -> tuple[Composed, str]:
        """Return a scene and its text: a portrait with a passage that names the thing, or a scene with its caption."""
        path = self.texts_zh if language == "zh" else self.texts_en
        named = _passages(path, self.scene.art, language) if path else ()
        if named and rng.random() < 0.7:
            kind, passage = rng.choice(named)
            return self.scene.portrait(rng, kind), passage
        composed = self.scene.compose(rng)
        return composed, caption(composed, language, rng)


@lru_cache(maxsize=8)
def _passages(path: str, art: str, language: str) -> tuple[tuple[Kind, str], ...]:
    """Return the passages that name a kind of thing, each with the first kind in it."""
    kinds = {kind.name(language): kind for kind in reversed(things(Scene(art=art).kinds()))}
    if language == "zh":
        kinds = {name: kind for name, kind in kinds.items() if len(name) >= MIN_NAME_ZH}
    names = sorted(kinds, key=len, reverse=True)
    found = re.compile(_any_of(names, language))
    pairs = ((found.search(passage), passage) for passage in words.read_passages(path) if len(passage) <= MAX_PASSAGE)
    return tuple((kinds[match[0]], passage) for match, passage in pairs if match is not None)


def _any_of(names: Sequence[str], language: str) -> str:
    either = "|".join(map(re.escape, names))
    return f"(?:{either})" if language == "zh" else rf"\b(?:{either})\b"
