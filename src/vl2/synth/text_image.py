"""Draw English and Chinese text in the fonts of this machine, and ask to read it or to locate a line."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from vl2.data import locate_phrases
from vl2.data.record import BoxPx
from vl2.synth import fonts, words
from vl2.synth.builtin_inputs import missing_texts
from vl2.synth.distort import Distorted
from vl2.synth.draft import Draft
from vl2.synth.page import Page, choose_paper, ink_for, line_height, make_paper, text_width, wrap
from vl2.synth.photograph import take_picture
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source

_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)|[。！？][”’」）]*")
READ = {
    "en": (
        "Read the text in the image.",
        "What does the image say?",
        "Transcribe the text.",
        "Please write down the text in this picture.",
        "OCR this image.",
    ),
    "zh": (
        "请读出图中的文字。",
        "图片上写着什么？",
        "识别图中的文字。",
        "请抄录这张图片里的文字。",
        "提取图像中的文本。",
    ),
}
READ_LINES = {
    "en": ("Transcribe the text line by line.", "Write down the text and keep its line breaks."),
    "zh": ("请逐行抄录图中的文字。", "识别文字，并保留换行。"),
}
READ_NTH = {
    "en": ("What does line {n} say?", "Read line {n} of the text."),
    "zh": ("第{n}行写的是什么？", "请读出第{n}行文字。"),
}
READ_BOX = {
    "en": ("Read the text in this region: {box}.", "What is written at {box}?"),
    "zh": ("请读出该区域的文字：{box}。", "{box}处写着什么？"),
}


@dataclass(frozen=True, kw_only=True)
class DrawnText:
    """An image with lines of text, and the box of each line."""

    picture: Distorted
    lines: list[str]
    boxes: list[BoxPx]
    traits: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TextImage(Source):
    """OCR of words, lines and paragraphs, and finding a line by its text."""

    name = "text_image"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("words", "line", "paragraph", "lines", "nth_line", "locate")

    texts_en: str | None = None  # a text file with a passage per line, or a corpus; None uses the built-in passages
    texts_zh: str | None = None
    font_folders: tuple[str, ...] | None = None  # None uses the folders of the system
    languages: tuple[str, ...] = ("en", "zh")
    max_distortions: int = 3
    photographed: float = 0.15

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.texts_en or self.texts_zh else super().own_licence()

    def builtin_inputs(self) -> tuple[str, ...]:
        return missing_texts(self.languages, self.texts_en, self.texts_zh, self.font_folders)

    def draft(self, rng: random.Random) -> Draft:
        possible = [lang for lang in self.languages if lang in fonts.languages(self.font_folders)]
        if not possible:
            raise Dropped("no font for the language")
        language = rng.choice(possible)
        task = self.pick_task(rng)
        drawn = self._draw(rng, task, language)
        draft = Draft(language=language, traits={"task": task, **drawn.traits})
        draft.picture(drawn.picture.image, jpeg_quality=drawn.picture.jpeg_quality)
        _ask(draft, task, drawn, rng)
        return draft

    def _draw(self, rng: random.Random, task: str, language: str) -> DrawnText:
        text = self._text(rng, task, language)
        face = fonts.choose_face(rng, text, self.font_folders)
        if face is None:
            raise Dropped("no font covers the text")
        size_px = rng.randint(24, 64) if task == "words" else rng.randint(15, 34)
        font = fonts.load(face, size_px)
        single = task in ("words", "line")
        lines = [text] if single else wrap(text, font, rng.randint(300, 620), language)
        margin, gap = rng.randint(10, 40), round(line_height(font) * rng.uniform(1.0, 1.5))
        width = max(text_width(font, line) for line in lines) + 2 * margin
        height = gap * (len(lines) - 1) + line_height(font) + 2 * margin
        kind = choose_paper(rng)
        page = Page(make_paper(kind, (width, height), rng))
        ink = ink_for(kind, rng)
        boxes = [page.write((margin, margin + n * gap), line, font, ink) for n, line in enumerate(lines)]
        picture = take_picture(page.image, rng, max_distortions=self.max_distortions, photographed=self.photographed)
        traits = {"font": face.name, "text_px": str(size_px), "paper": kind, "distortion": "+".join(picture.names)}
        return DrawnText(picture=picture, lines=lines, boxes=[picture.move(b) for b in boxes], traits=traits)

    def _text(self, rng: random.Random, task: str, language: str) -> str:
        path = self.texts_zh if language == "zh" else self.texts_en
        passage = words.choose_passage(rng, language, path)
        if task == "words":
            return _some_words(rng, passage, language) if path else rng.choice(words.COMMON[language])
        if task == "line":
            return cut(rng, passage, language, 24 if language == "zh" else 60)
        return cut(rng, passage, language, 160 if language == "zh" else 420, from_start=True)


def _some_words(rng: random.Random, passage: str, language: str) -> str:
    return cut(rng, passage, language, rng.randint(2, 6) if language == "zh" else rng.randint(6, 20))


def cut(rng: random.Random, passage: str, language: str, limit: int, *, from_start: bool = False) -> str:
    """Return a piece of a passage of at most `limit` characters. English is cut between words, and keeps at least one.

    The piece begins at a random position, or with `from_start` at the beginning.
    """
    if language == "zh":
        start = 0 if from_start else rng.randrange(max(1, len(passage) - limit + 1))
        return passage[start : start + limit].strip("，。、；：？！ ") if not from_start else passage[:limit]
    pieces = passage.split(" ")
    start = 0 if from_start else rng.randrange(len(pieces))
    taken = pieces[start]
    for piece in pieces[start + 1 :]:
        if len(taken) + 1 + len(piece) > limit:
            break
        taken += f" {piece}"
    return taken[: 2 * limit]


def whole_sentences(text: str) -> str:
    """Return a text without the unfinished sentence at its end, if it has at least one whole sentence."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else text


def _ask(draft: Draft, task: str, drawn: DrawnText, rng: random.Random) -> None:
    lang, lines = draft.language, drawn.lines
    if task in ("words", "line", "paragraph"):
        draft.ask(rng.choice(READ[lang]), ("" if lang == "zh" else " ").join(lines))
    elif task == "lines":
        draft.ask(rng.choice(READ_LINES[lang]), "\n".join(lines))
    elif task == "nth_line":
        at = rng.randrange(len(lines))
        draft.ask(rng.choice(READ_NTH[lang]).format(n=at + 1), lines[at])
    else:
        _ask_place(draft, drawn, rng)


def _ask_place(draft: Draft, drawn: DrawnText, rng: random.Random) -> None:
    """Ask where a line is, or what text a given box contains."""
    at = rng.randrange(len(drawn.lines))
    if rng.random() < 0.7:
        # If the same line occurs several times, the answer has all of its boxes.
        same = [box for line, box in zip(drawn.lines, drawn.boxes, strict=True) if line == drawn.lines[at]]
        answer = draft.box(drawn.lines[at], same)
        draft.category = "grounding"
        draft.ask(locate_phrases.locate(rng, draft.language, drawn.lines[at]), answer)
    else:
        place = draft.box("文字" if draft.language == "zh" else "text", [drawn.boxes[at]])
        draft.ask(rng.choice(READ_BOX[draft.language]).format(box=place), drawn.lines[at])
