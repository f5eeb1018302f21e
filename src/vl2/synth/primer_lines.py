"""Draw the primer's texts: one or a few short lines in English or Chinese, at sizes that a small model can read.

The primer is a set of sources for training a small model: small images with several questions each. No image is larger
than two tiles of 168 px side by side, so that it costs one to three tiles, which its questions share. The synthetic
tests of `vl2 eval` use the same sources.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from vl2.data.locate_phrases import locate
from vl2.data.record import BoxPx
from vl2.errors import UserError
from vl2.synth import fonts, words
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.page import Page, choose_paper, ink_for, letter_boxes, line_height, make_paper, text_width
from vl2.synth.source import Dropped, Source
from vl2.synth.text_image import READ, READ_LINES, READ_NTH
from vl2.synth.words import read_characters

PHRASE_ATTEMPTS = 40  # number of random faces tried for a text
LEAST_PX = 13  # least font size; at this size a letter is half a patch wide


def choose_language(rng: random.Random, languages: tuple[str, ...], folders: tuple[str, ...] | None) -> str:
    """Return a random one of the languages that the fonts can draw. Raise Dropped if there is none."""
    possible = [language for language in languages if language in fonts.languages(folders)]
    if not possible:
        raise Dropped("no font for the language")
    return rng.choice(possible)


def choose_face(rng: random.Random, text: str, folders: tuple[str, ...] | None) -> fonts.Face:
    """Return a random face that covers a text. Raise Dropped if there is none.

    Random faces are tried first, because testing all faces would take longer than drawing.
    """
    faces = fonts.find_faces(folders)
    for _ in range(PHRASE_ATTEMPTS):
        face = rng.choice(faces)
        if fonts.covers(face, text):
            return face
    covering = fonts.faces_for(text, folders)
    if not covering:
        raise Dropped("no font covers the text")
    return rng.choice(covering)


def fit(face: fonts.Face, text: str, size_px: int, width_px: float) -> fonts.Font:
    """Return the font at the wanted size, or at a smaller size at which the text fits the width.

    Raise Dropped if that size would be below LEAST_PX.
    """
    length = fonts.load(face, size_px).getlength(text)
    if length > width_px:
        size_px = int(size_px * width_px / length)
    if size_px < LEAST_PX:
        raise Dropped("the text is too long for its place")
    return fonts.load(face, size_px)


def phrase(rng: random.Random, language: str, path: str | None, limit: int) -> str:
    """Return one to a few words of at most `limit` characters from the texts of a file, or from the built-in ones."""
    passages = words.read_passages(path) if path else words.PASSAGES[language]
    passage = rng.choice(passages)
    if language == "zh":
        start = rng.randrange(max(1, len(passage) - 1))
        piece = passage[start : start + rng.randint(1, limit)]
        return piece.strip("，。、；：？！ ") or passage[:limit]
    pieces = passage.split(" ")
    start = rng.randrange(len(pieces))
    length, taken = rng.randint(min(3, limit), limit), pieces[start][:limit]
    for piece in pieces[start + 1 :]:
        if len(taken) + 1 + len(piece) > length:
            break
        taken += f" {piece}"
    return taken


def token(rng: random.Random) -> str:
    """Return a random text without words, as on labels and receipts: a price, a date, a time, a number or a code."""
    kind = rng.randrange(6)
    if kind == 0:
        return f"${rng.randint(0, 199)}.{rng.randint(0, 99):02d}"
    if kind == 1:
        return f"{rng.randint(1, 28):02d}/{rng.randint(1, 12):02d}/{rng.randint(1990, 2030)}"
    if kind == 2:
        return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    if kind == 3:
        return str(rng.randint(0, 10 ** rng.randint(1, 7)))
    if kind == 4:
        return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(rng.randint(2, 8)))
    return f"{rng.randint(0, 999)}.{rng.randint(0, 99):02d}{rng.choice(('', '%', ' kg', ' km', ' EUR'))}"


TOKEN_SHARE = 0.15  # fraction of the texts that have no words
LEAST_OFTEN = 4  # least number of times that a character must occur in the texts to be used in random texts
TURNS = 3
LINE_ATTEMPTS = 50  # attempts to find a text that is long enough


@dataclass(frozen=True, kw_only=True)
class PrimerReading(Source):
    """Short texts at a readable size: tasks "line" (one line and nothing else) and "lines" (two to five)."""

    name = "primer_reading"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("line", "lines")

    texts_en: str | None = None  # path of a text file with one passage per line; None uses the built-in passages
    texts_zh: str | None = None
    font_folders: tuple[str, ...] | None = None  # None uses the folders of the system
    languages: tuple[str, ...] = ("en", "zh")
    min_chars_en: int = 1  # least length of the text in the task "line"; longer texts are drawn smaller
    max_chars_en: int = 24
    max_chars_zh: int = 10
    line_widths: tuple[int, ...] = (150, 320, 320)  # px; the width of an image of one line is one of these at random
    max_distortions: int = 1
    even_share: float = 0.0  # fraction of Chinese texts made of random characters, all equally likely

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
        for _ in range(LINE_ATTEMPTS):
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
        """Return a draft with the image of the texts, and the boxes of each line."""
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
    """The box of a line in the image, and the boxes of its letters."""

    box: BoxPx
    letters: list[BoxPx]


def _ask_place(draft: Draft, text: str, box: BoxPx, rng: random.Random) -> None:
    draft.ask(locate(rng, draft.language, text), draft.box(text, [box]))
