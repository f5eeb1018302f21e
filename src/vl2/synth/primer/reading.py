"""Reading for beginners: one line, or a few short ones, in English and Chinese."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from vl2.data.locate_phrases import locate
from vl2.data.record import BoxPx
from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.page import Page, letter_boxes, line_height, text_width
from vl2.synth.paper import choose_paper, ink_for, make_paper
from vl2.synth.primer.writing import choose_face, choose_language, fit, phrase, token
from vl2.synth.source import Dropped, Source
from vl2.synth.text_image import READ, READ_LINES, READ_NTH
from vl2.synth.words import read_characters

TOKEN_SHARE = 0.15  # of texts without words
LEAST_OFTEN = 4  # times that texts must have a character for it to be written at random
TURNS = 3
ATTEMPTS = 50  # to find a text that is long enough


@dataclass(frozen=True, kw_only=True)
class PrimerReading(Source):
    """Short texts at a readable size: tasks "line" (one line and nothing else) and "lines" (two to five)."""

    name = "primer_reading"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("line", "lines")

    texts_en: str | None = None  # a text file with one passage a line; None: the built-in ones
    texts_zh: str | None = None
    font_folders: tuple[str, ...] | None = None  # None: where the system keeps them
    languages: tuple[str, ...] = ("en", "zh")
    min_chars_en: int = 1  # of one line: more, for texts that are drawn small
    max_chars_en: int = 24
    max_chars_zh: int = 10
    line_widths: tuple[int, ...] = (150, 320, 320)  # px, of a picture of one line: one is chosen
    max_distortions: int = 1
    even_share: float = 0.0  # of Chinese texts: characters at random, rare ones as often as frequent ones

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.even_share <= 1:
            raise UserError(f"even_share must be from 0 to 1, got {self.even_share}")
        if self.even_share and self.texts_zh is None:
            raise UserError("even_share needs texts_zh: a file of texts that have the characters")
        if self.min_chars_en > self.max_chars_en:
            raise UserError(f"min_chars_en must be at most max_chars_en, {self.max_chars_en}, got {self.min_chars_en}")

    def draft(self, rng: random.Random) -> Draft:
        language = choose_language(rng, self.languages, self.font_folders)
        task = self.pick_task(rng)
        if task == "line":
            return self._line(rng, language)
        return self._lines(rng, language)

    def _text(self, rng: random.Random, language: str, limit: int) -> str:
        if language == "zh" and self.texts_zh is not None and self.even_share and rng.random() < self.even_share:
            known = read_characters(self.texts_zh, LEAST_OFTEN)
            return "".join(rng.choice(known) for _ in range(rng.randint(2, limit)))
        if rng.random() < TOKEN_SHARE:
            return token(rng)
        return phrase(rng, language, self.texts_zh if language == "zh" else self.texts_en, limit)

    def _long_text(self, rng: random.Random, language: str) -> str:
        least = self.min_chars_en if language == "en" else 1
        for _ in range(ATTEMPTS):
            text = self._text(rng, language, self._limit(language))
            if len(text) >= least:
                return text
        raise Dropped("no text has min_chars_en")

    def _limit(self, language: str) -> int:
        return self.max_chars_zh if language == "zh" else self.max_chars_en

    def _line(self, rng: random.Random, language: str) -> Draft:
        text = self._long_text(rng, language)
        face = choose_face(rng, text, self.font_folders)
        margin = rng.randint(4, 24)
        font = fit(face, text, rng.randint(20, 48), rng.choice(self.line_widths) - 2 * margin)
        size = (text_width(font, text) + 2 * margin, line_height(font) + 2 * margin)
        draft, (line,) = self._draw(rng, language, [text], font, face, size, margin)
        draft.ask(rng.choice(READ[language]), text, [draft.show(text, line.letters)])
        if rng.random() < 0.2:
            _ask_place(draft, text, line.box, rng)
        return draft

    def _lines(self, rng: random.Random, language: str) -> Draft:
        width, height = rng.choice(((164, 164), (164, 164), (240, 164), (330, 164)))
        count = rng.randint(2, 5)
        texts = [self._text(rng, language, max(2, self._limit(language) * width // 330)) for _ in range(count)]
        face = choose_face(rng, "".join(texts), self.font_folders)
        margin = rng.randint(4, 14)
        longest = max(texts, key=lambda text: fonts.load(face, 20).getlength(text))
        font = fit(face, longest, rng.randint(16, 34), width - 2 * margin)
        while line_height(font) * count > height - 2 * margin and count > 2:
            count -= 1
        texts = texts[:count]
        if line_height(font) * count > height - 2 * margin:
            raise Dropped("the lines are too high for their place")
        draft, lines = self._draw(rng, language, texts, font, face, (width, height), margin)
        shown = [draft.show(text, line.letters) for text, line in zip(texts, lines, strict=True)]
        draft.ask(rng.choice(READ_LINES[language]), "\n".join(texts), shown)
        for at in rng.sample(range(count), min(count, rng.randint(0, TURNS - 1))):
            if rng.random() < 0.5 and texts.count(texts[at]) == 1:
                _ask_place(draft, texts[at], lines[at].box, rng)
            else:
                draft.ask(rng.choice(READ_NTH[language]).format(n=at + 1), texts[at], [shown[at]])
        return draft

    def _draw(
        self,
        rng: random.Random,
        language: str,
        texts: list[str],
        font: fonts.Font,
        face: fonts.Face,
        size: tuple[int, int],
        margin: int,
    ) -> tuple[Draft, list[_Line]]:
        """Return a draft with the picture, and where each line stands."""
        kind = choose_paper(rng)
        page, ink = Page(make_paper(kind, size, rng)), ink_for(kind, rng)
        spare = size[1] - 2 * margin - line_height(font) * len(texts)
        step = line_height(font) + rng.uniform(0, spare / len(texts))
        places = [(margin, margin + n * step) for n in range(len(texts))]
        written = [page.write(place, text, font, ink) for place, text in zip(places, texts, strict=True)]
        picture = distort(page.image, rng, rng.randint(0, self.max_distortions))
        traits = {"font": face.name, "paper": kind, "distortion": "+".join(picture.names), "lines": str(len(texts))}
        draft = Draft(language=language, traits=traits)
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        return draft, [
            _Line(box=picture.move(box), letters=[picture.move(letter) for letter in letter_boxes(font, text, box)])
            for text, box in zip(texts, written, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Where a line stands in the picture, whole and letter by letter."""

    box: BoxPx
    letters: list[BoxPx]


def _ask_place(draft: Draft, text: str, box: BoxPx, rng: random.Random) -> None:
    draft.ask(locate(rng, draft.language, text), draft.box(text, [box]))
