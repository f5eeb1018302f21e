"""Draw textbook pages with an exercise, its figure and four options.

The answer is either a worked solution that ends with the letter of the right option, or the letter only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vl2.synth import fonts
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.exercises import EXERCISES, Exercise
from vl2.synth.page import Page, line_height, text_width, wrap
from vl2.synth.source import Dropped, Source

HEADS = {"en": ("Exercise {n}", "Problem {n}", "Question {n}"), "zh": ("习题{n}", "练习{n}", "第{n}题")}
WORKED = {
    "en": ("Solve the exercise. Give the letter of the right option at the end.", "Work out the exercise on the page."),
    "zh": ("请解答这道题，最后写出正确选项的字母。", "解答图中的习题。"),
}
CONCISE = {
    "en": ("Which option is right? Answer with its letter only.",),
    "zh": ("哪个选项正确？只回答字母。",),
}
END = {"en": "The answer is {letter}.", "zh": "答案是{letter}。"}


@dataclass(frozen=True, kw_only=True)
class Textbook(Source):
    """Physics, chemistry, mathematics, statistics, biology and economics of a first year at college."""

    name = "textbook"
    category = "academic"
    tasks_known: ClassVar[tuple[str, ...]] = tuple(EXERCISES)

    form: str = "mixed"  # "worked", "concise", or "mixed"
    font_folders: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ("en", "zh")
    max_distortions: int = 1

    def draft(self, rng: random.Random) -> Draft:
        asked = rng.choice([lang for lang in self.languages if lang in fonts.languages(self.font_folders)] or ["en"])
        task = self.pick_task(rng)
        for language in dict.fromkeys((asked, "en")):  # falls back to English: few Chinese fonts have all the symbols
            exercise = EXERCISES[task](rng, language)
            options = _options(exercise, rng)
            head = rng.choice(HEADS[language]).format(n=f"{rng.randint(1, 14)}.{rng.randint(1, 40)}")
            lettered = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
            text = head + exercise.question + "".join(lettered) + exercise.figure_text
            face = fonts.choose_face(rng, text, self.font_folders)
            if face is not None:
                break
        else:
            raise Dropped("no font covers the exercise")
        page = _draw(head, exercise, lettered, language, face, rng)
        picture = distort(page, rng, rng.randint(0, self.max_distortions))
        concise = self.form == "concise" or (self.form == "mixed" and rng.random() < 0.35)
        draft = Draft(language=language, traits={"task": task, "font": face.name})
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        letter = "ABCD"[options.index(exercise.answer)]
        worked = "\n".join((*exercise.steps, END[language].format(letter=letter)))
        draft.ask(rng.choice((CONCISE if concise else WORKED)[language]), letter if concise else worked)
        return draft


def _options(exercise: Exercise, rng: random.Random) -> list[str]:
    """Return the answer and three wrong options, all different, in random order."""
    wrong = [option for option in dict.fromkeys(exercise.wrong) if option != exercise.answer][:3]
    assert len(wrong) == 3, exercise
    options = [exercise.answer, *wrong]
    rng.shuffle(options)
    return options


def _draw(
    head: str, exercise: Exercise, lettered: list[str], language: str, face: fonts.Face, rng: random.Random
) -> Image.Image:
    font = fonts.load(face, rng.randint(16, 22))
    inner, margin = rng.randint(380, 520), rng.randint(20, 44)
    step = round(line_height(font) * rng.uniform(1.15, 1.35))
    lines = wrap(exercise.question, font, inner, language)
    inner = max(inner, *(text_width(font, line) for line in (*lines, *lettered)))
    figure = exercise.figure(face) if exercise.figure is not None else None
    figure_px = figure.height + step if figure is not None else 0
    height = step * (len(lines) + len(lettered) + 2) + figure_px + 2 * margin
    page = Page(Image.new("RGB", (inner + 2 * margin, height), "white"))
    ink = rng.choice(((20, 20, 20), (40, 40, 60)))
    y = margin
    page.write((margin, y), head, font, rng.choice(((150, 30, 30), (25, 70, 140), ink)))
    y += round(1.4 * step)
    for line in lines:
        page.write((margin, y), line, font, ink)
        y += step
    if figure is not None:
        page.image.paste(figure, (margin + (inner - figure.width) // 2, y + step // 4))
        y += figure_px
    y += step // 4
    for option in lettered:
        page.write((margin, y), option, font, ink)
        y += step
    return page.image
