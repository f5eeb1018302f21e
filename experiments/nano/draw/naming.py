"""Emoji, stamps and photographs with their names: one alone, or a sheet of many.

Names are mostly bare, one a line on sheets, and in one language a record: behind a space a name is made of other
tokens, and an answer in a second language could be had from the first. Some answers are sentences, to learn those too.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from PIL import Image, ImageEnhance

from experiments.nano.draw.answers import CANNOT_TELL
from experiments.nano.draw.base import NanoSource
from experiments.nano.draw.frame import choose_size
from experiments.nano.draw.phrasing import phrase
from experiments.nano.splits import is_test_photo
from vl2.synth.draft import Draft
from vl2.synth.emoji import IS_IT, LIST_THEM, NTH, NUMBERS_ZH, Laid, draw_sheet, lay_alone
from vl2.synth.nouns import article
from vl2.synth.scene_words import named
from vl2.synth.source import Dropped
from vl2.synth.sprites import Kind, is_noun, read_kinds

RESTYLED = 0.6
SENTENCES = {
    "en": ("This is {a_name}.", "It is {a_name}.", "The picture shows {a_name}."),
    "zh": ("这是{name}。", "图片里画的是{name}。"),
}
SENTENCE_SHARE = 0.15
UNANSWERABLE_SHARE = 0.08  # of drawn things; of photographs, half
ALONE = {(2, 2): 90, (1, 2): 2, (2, 1): 2, (3, 3): 6}  # grids of pictures of one thing


@dataclass(frozen=True, kw_only=True)
class Naming(NanoSource):
    """Tasks "name", "list" (a sheet), "nth" and "is_it" of the sprite sets among the inputs."""

    name = "nano_naming"
    category = "caption"
    tasks_known: ClassVar[tuple[str, ...]] = ("name", "list", "nth", "is_it")

    sets: str = "art"  # a folder of sprite sets among the inputs, or of one

    def draft(self, rng: random.Random) -> Draft:
        language, task = rng.choice(self.languages), self.pick_task(rng)
        pool = read_kinds(rng.choice(_folders(str(Path(self.inputs) / self.sets))))
        draft = Draft(language=language, traits={"task": task})
        if task in ("list", "nth"):
            image, laid = draw_sheet(pool, rng, RESTYLED)
            draft.picture(image)
            _ask_sheet(rng, draft, laid, task)
            return draft
        kind = rng.choice(pool)
        image, box = lay_alone(kind, choose_size(rng, ALONE), rng, RESTYLED)
        draft.picture(image)
        if task == "is_it" and is_noun(kind):
            _ask_is_it(rng, draft, kind, pool)
        else:
            _ask_name(rng, draft, kind, Laid(kind, box))
        if rng.random() < UNANSWERABLE_SHARE:
            _ask_unanswerable(rng, draft)
        return draft


def _ask_unanswerable(rng: random.Random, draft: Draft) -> None:
    """Ask what no picture without writing tells."""
    draft.ask(phrase("unanswerable", draft.language, rng), CANNOT_TELL[draft.language])


@lru_cache(maxsize=8)
def _folders(folder: str) -> tuple[str, ...]:
    if (Path(folder) / "sprites.json").is_file():
        return (folder,)
    return tuple(str(path) for path in sorted(Path(folder).iterdir()))


def _ask_name(rng: random.Random, draft: Draft, kind: Kind, laid: Laid) -> None:
    name = kind.full_name(draft.language)
    sentence = is_noun(kind) and rng.random() < SENTENCE_SHARE
    answer = named(rng.choice(SENTENCES[draft.language]), name) if sentence else name
    draft.ask(phrase("name_it", draft.language, rng), answer, [laid.show_middle(draft)])


def _ask_is_it(rng: random.Random, draft: Draft, kind: Kind, pool: tuple[Kind, ...]) -> None:
    lang = draft.language
    other = rng.choice(pool).full_name(lang)
    is_true = rng.random() < 0.5 or other == kind.full_name(lang)
    asked = kind.full_name(lang) if is_true else other
    answers = ("是的。", "不是。") if lang == "zh" else ("Yes.", "No.")
    draft.ask(rng.choice(IS_IT[lang]).format(name=asked, a_name=article(asked)), answers[not is_true])


def _ask_sheet(rng: random.Random, draft: Draft, laid: list[Laid], task: str) -> None:
    lang = draft.language
    if task == "nth":
        for at in rng.sample(range(len(laid)), min(4, len(laid))):
            number = NUMBERS_ZH[at] if lang == "zh" and at < len(NUMBERS_ZH) else at + 1
            name = laid[at].kind.full_name(lang)
            draft.ask(rng.choice(NTH[lang]).format(n=number), name, [laid[at].show_middle(draft)])
        return
    names = [thing.kind.full_name(lang) for thing in laid]
    answer = "、".join(names) + "。" if lang == "zh" else "\n".join(names)
    draft.ask(rng.choice(LIST_THEM[lang]), answer, [thing.show_middle(draft) for thing in laid])


@dataclass(frozen=True, kw_only=True)
class Photographs(NanoSource):
    """Photographs with their names, cut and lit otherwise each time; and what a photograph does not tell."""

    name = "nano_photographs"
    category = "caption"
    tasks_known: ClassVar[tuple[str, ...]] = ("name", "unknown")

    def draft(self, rng: random.Random) -> Draft:
        names = _photographs(str(Path(self.inputs) / "photos"))
        file = rng.choice(sorted(names))
        with Image.open(Path(self.inputs) / "photos" / file) as opened:
            image = opened.convert("RGB")
        lang = rng.choice(self.languages)
        draft = Draft(language=lang)
        draft.picture(cut(rng, image), jpeg_quality=rng.randint(60, 92))
        name = names[file][lang == "zh"]
        draft.ask(phrase("name_it", lang, rng), name)
        if rng.random() < 0.5:
            _ask_unanswerable(rng, draft)
        return draft


@lru_cache(maxsize=2)
def _photographs(folder: str) -> dict[str, tuple[str, str]]:
    named = json.loads((Path(folder) / "names.json").read_text(encoding="utf-8"))
    return {file: tuple(names) for file, names in named.items() if not is_test_photo(file)}


def cut(rng: random.Random, image: Image.Image) -> Image.Image:
    """Return a part of a photograph, at least two thirds of each side, lit otherwise and now and then mirrored."""
    width, height = (round(side * rng.uniform(0.67, 1)) for side in image.size)
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    part = image.crop((x, y, x + width, y + height))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    part.thumbnail((rng.randint(160, 520),) * 2)
    return ImageEnhance.Brightness(part).enhance(rng.uniform(0.75, 1.25))


@dataclass(frozen=True, kw_only=True)
class GivenPhotographs(NanoSource):
    """Photographs with boxes, of cells and of playing cards: where something is, and whether it is there."""

    name = "nano_given_photographs"
    category = "grounding"
    tasks_known: ClassVar[tuple[str, ...]] = ("place", "presence")

    def draft(self, rng: random.Random) -> Draft:
        from experiments.nano.draw.real import ask_photograph, photographs

        rows = photographs(str(Path(self.inputs) / "sets/photos"))
        row = rng.choice(rows)
        draft = Draft(language="en")
        with Image.open(io.BytesIO(row.image)) as opened:
            image = opened.convert("RGB")
        if not row.objects:
            raise Dropped("a photograph without boxes")
        draft.picture(image, jpeg_quality=85)
        ask_photograph(rng, draft, row)
        return draft
