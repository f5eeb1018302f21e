"""Draw articles of one or several pages in columns, with headings, figures and page numbers, and ask about them.

Text flows from column to column and from page to page. Boxes are in pixels of their page.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from PIL import Image

from vl2.data import locate_phrases
from vl2.data.record import BoxPx
from vl2.synth import fonts, words
from vl2.synth.builtin_inputs import missing_texts
from vl2.synth.draft import Draft
from vl2.synth.illustration import choose_illustration
from vl2.synth.page import Color, Page, line_height, make_paper, wrap
from vl2.synth.photograph import take_picture
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source
from vl2.synth.text_image import cut, whole_sentences

Kind = Literal["title", "byline", "heading", "paragraph", "figure", "caption"]
ATTEMPTS = 6  # texts tried for one that a font covers
_CLAUSE = re.compile(r"[.,;:!?()\"][\s\"]+|[，。；：！？、（）“”《》「」]")
HEADING_CHARS = {"en": 32, "zh": 12}
PARAGRAPH_CHARS = {"en": 520, "zh": 180}
ASK: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "read": ("Transcribe the page as Markdown.", "Convert this page to Markdown, in reading order."),
        "section": ('What does the section "{heading}" say?', 'Read the text below the heading "{heading}".'),
        "headings": ("List the headings in order.", "Which sections does the document have?"),
        "page": (
            'On which page is the section "{heading}"? Count from the first picture.',
            'Which of these pages, counted from 1, has the heading "{heading}"?',
        ),
        "caption": ("What is the caption of figure {n}?", "Read the caption of figure {n}."),
    },
    "zh": {
        "read": ("请把这一页转写成Markdown。", "按阅读顺序把页面转换成Markdown。"),
        "section": ("“{heading}”一节写了什么？", "请读出标题“{heading}”下面的文字。"),
        "headings": ("请按顺序列出各节标题。", "这份文件有哪些小节？"),
        "page": ("“{heading}”一节在第几页？从第一张图数起。",),
        "caption": ("图{n}的说明是什么？", "请读出图{n}的说明文字。"),
    },
}
FIGURE = {"en": "Figure {n}. {text}", "zh": "图{n}　{text}"}
FIGURE_LABEL = {"en": "figure {n}", "zh": "图{n}"}


@dataclass(kw_only=True)
class Block:
    """A piece of an article; `boxes` has a (page, box) for each of its drawn lines, or for its picture."""

    kind: Kind
    text: str
    section: int = 0  # which heading it is below, counted from 1
    figure: Image.Image | None = None
    is_whole: bool = False  # all of it fits on the pages
    boxes: list[tuple[int, BoxPx]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # the drawn ones

    def on_page(self) -> tuple[int, BoxPx]:
        """Return the page that the block begins on, and the box around its part there."""
        number = self.boxes[0][0]
        x0, y0, x1, y1 = zip(*(box for page, box in self.boxes if page == number), strict=True)
        return number, (min(x0), min(y0), max(x1), max(y1))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the pages in pixels, and their fonts and ink."""

    size: tuple[int, int]
    margin: int
    columns: int
    gap: int
    fonts: dict[Kind, fonts.Font]
    ink: Color
    accent: Color

    @property
    def column_px(self) -> int:
        return (self.size[0] - 2 * self.margin - (self.columns - 1) * self.gap) // self.columns


@dataclass(frozen=True, kw_only=True)
class Article(Source):
    """Pages in one to three columns: transcription, sections, headings, figures, and on which page something is."""

    name = "article"
    category = "document"
    tasks_known: ClassVar[tuple[str, ...]] = ("read", "section", "headings", "page", "caption", "locate")

    texts_en: str | None = None  # a text file with a passage per line, or a corpus; None uses the built-in passages
    texts_zh: str | None = None
    photographs: str | None = None  # folder of images for the figures; None draws scenes
    font_folders: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ("en", "zh")
    max_columns: int = 3
    max_pages: int = 4  # pages of a task that needs several; a model shows only up to two images in tiles
    max_distortions: int = 1
    photographed: float = 0.2

    def own_licence(self) -> str:
        given = self.texts_en or self.texts_zh or self.photographs
        return UNKNOWN_LICENCE if given else super().own_licence()

    def builtin_inputs(self) -> tuple[str, ...]:
        return missing_texts(self.languages, self.texts_en, self.texts_zh, self.font_folders)

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice([lang for lang in self.languages if lang in fonts.languages(self.font_folders)] or ["en"])
        task = self.pick_task(rng)
        num_pages = rng.randint(2, self.max_pages) if task in ("page", "headings") else 1
        blocks, face = self._write(rng, language, num_pages, has_figures=task in ("caption", "locate"))
        layout = choose_layout(rng, face, self.max_columns)
        pages = draw_pages(blocks, layout, language, num_pages, rng)
        pages = pages[: 1 + max(page for block in blocks for page, _ in block.boxes)]  # few texts may fill fewer
        photographed = float(rng.random() < self.photographed)  # all pages of an article, or none
        pictures = [
            take_picture(page, rng, max_distortions=self.max_distortions, photographed=photographed) for page in pages
        ]
        traits = {"task": task, "font": face.name, "columns": str(layout.columns), "pages": str(len(pages))}
        draft = Draft(language=language, traits=traits)
        for picture in pictures:
            draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        drawn = [block for block in blocks if block.boxes]
        if task == "locate":
            label, (number, box) = _choose_place(drawn, language, rng)
            draft.category = "grounding"
            question = locate_phrases.locate(rng, language, label)
            draft.ask(question, draft.box(label, [pictures[number].move(box)], number))
        else:
            draft.category = "ocr" if task == "read" else None
            draft.ask(*_ask(drawn, task, language, rng))
        return draft

    def _write(
        self, rng: random.Random, language: str, num_pages: int, *, has_figures: bool
    ) -> tuple[list[Block], fonts.Face]:
        """Return the blocks of an article that is longer than its pages, and a font for it."""
        for _ in range(ATTEMPTS):
            blocks = list(self._blocks(rng, language, num_pages, has_figures=has_figures))
            face = fonts.choose_face(rng, "".join(block.text for block in blocks) + "0123456789–", self.font_folders)
            if face is not None:
                return blocks, face
        raise Dropped("no font covers the text")

    def _blocks(self, rng: random.Random, language: str, num_pages: int, *, has_figures: bool) -> list[Block]:
        texts = self.texts_zh if language == "zh" else self.texts_en

        def passage() -> str:
            return words.choose_passage(rng, language, texts)

        def clause(limit: int) -> str:
            """Return a clause of a passage, as a heading; a piece of one if none is short enough."""
            text = passage()
            fitting = [part.strip() for part in _CLAUSE.split(text) if limit / 4 <= len(part.strip()) <= limit]
            return _capital(rng.choice(fitting) if fitting else cut(rng, text, language, limit).strip(" ,;:."))

        blocks = [Block(kind="title", text=clause(2 * HEADING_CHARS[language]))]
        if rng.random() < 0.6:
            by = f"{words.name(rng, language)}, {words.date(rng, language)}"
            blocks.append(Block(kind="byline", text=by))
        figures, seen = 0, set[str]()
        for number in range(1, 5 * num_pages + 1):
            heading = clause(HEADING_CHARS[language])
            if not heading or heading in seen:
                continue
            seen.add(heading)
            blocks.append(Block(kind="heading", text=heading, section=number))
            for _ in range(rng.randint(1, 3)):
                text = whole_sentences(cut(rng, passage(), language, PARAGRAPH_CHARS[language], from_start=True))
                blocks.append(Block(kind="paragraph", text=text, section=number))
            if rng.random() < (1.0 if has_figures and not figures else 0.3):
                figures += 1
                image = choose_illustration(rng, self.photographs, 420)
                caption = FIGURE[language].format(n=figures, text=clause(2 * HEADING_CHARS[language]))
                blocks.append(Block(kind="figure", text="", section=number, figure=image))
                blocks.append(Block(kind="caption", text=caption, section=number))
        return blocks


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def choose_layout(rng: random.Random, face: fonts.Face, max_columns: int) -> Layout:
    columns = rng.randint(1, max_columns)
    width = rng.randint(560, 680) if columns == 1 else rng.randint(680, 860)
    body = rng.randint(14, 17)
    sizes: dict[Kind, int] = {
        "title": rng.randint(24, 34), "byline": body - 1, "heading": body + rng.randint(2, 5), "paragraph": body,
        "figure": body, "caption": body - 2,
    }  # fmt: skip
    ink = rng.choice(((0, 0, 0), (25, 25, 35), (45, 45, 45)))
    accent = rng.choice((ink, (150, 30, 30), (25, 70, 140), (20, 100, 80)))
    return Layout(
        size=(width, round(width * rng.uniform(1.2, 1.42))), margin=rng.randint(34, 60), columns=columns,
        gap=rng.randint(18, 30), fonts={kind: fonts.load(face, px) for kind, px in sizes.items()}, ink=ink,
        accent=accent,
    )  # fmt: skip


def draw_pages(
    blocks: list[Block], layout: Layout, language: str, num_pages: int, rng: random.Random
) -> list[Image.Image]:
    """Draw the blocks until `num_pages` pages are full, and set their boxes. The title spans all columns."""
    paper, first = rng.choice(("white", "white", "plain", "noise")), rng.randint(1, 240)
    pages = [Page(make_paper(paper, layout.size, rng)) for _ in range(num_pages)]
    bottom, top = layout.size[1] - layout.margin - 24, float(layout.margin)
    for block in blocks:
        if block.kind in ("title", "byline"):
            inner = layout.size[0] - 2 * layout.margin
            top = _write_lines(block, pages[0], 0, (layout.margin, top), inner, layout, language)
            block.is_whole = True
    ruled, step = rng.random() < 0.5, layout.column_px + layout.gap
    if ruled:
        pages[0].draw.line((layout.margin, top, layout.size[0] - layout.margin, top), fill=layout.accent)
        top += 8
    # The columns of all pages in reading order, as (page, x, y of the top).
    columns = [
        (n, layout.margin + c * step, top if n == 0 else float(layout.margin))
        for n in range(num_pages)
        for c in range(layout.columns)
    ]
    flow = [block for block in blocks if block.kind not in ("title", "byline")]
    _flow(flow, pages, columns, bottom, layout, language)
    for number, page in enumerate(pages):
        font = layout.fonts["caption"]
        foot = (layout.size[0] / 2, layout.size[1] - layout.margin)
        page.write(foot, f"– {first + number} –", font, layout.ink, "ms")
    return [page.image for page in pages]


def _flow(
    blocks: list[Block],
    pages: list[Page],
    columns: list[tuple[int, int, float]],
    bottom: int,
    layout: Layout,
    language: str,
) -> None:
    """Fill the columns line by line. A heading is not left alone at the foot, nor is a figure without its caption."""
    at, y = 0, columns[0][2]
    for index, block in enumerate(blocks):
        font = layout.fonts[block.kind]
        step = round(line_height(font) * 1.2)
        lines = wrap(block.text, font, layout.column_px, language) if block.figure is None else [""]
        height = step
        if block.figure is not None:
            height = round(block.figure.height * _fit(block.figure, layout)) + 6
        needed = height
        if block.kind in ("heading", "figure") and index + 1 < len(blocks):
            needed += 3 * round(line_height(layout.fonts[blocks[index + 1].kind]) * 1.2)
        y += 8 if block.kind in ("heading", "figure") else 0
        for line in lines:
            if y + needed > bottom:
                at += 1
                if at == len(columns):
                    return
                y = columns[at][2]
            number, x, _ = columns[at]
            block.boxes.append((number, _draw_line(block, line, pages[number], (x, y), layout)))
            block.lines.append(line)
            y, needed = y + height, step
        block.is_whole = True
        y += 3 if block.kind in ("heading", "figure") else 8


def _fit(figure: Image.Image, layout: Layout) -> float:
    """Return the scale at which a figure fits its column and is at most a third of the page high."""
    return min(layout.column_px / figure.width, layout.size[1] / 3 / figure.height)


def _draw_line(block: Block, line: str, page: Page, at: tuple[float, float], layout: Layout) -> BoxPx:
    if block.figure is None:
        ink = layout.accent if block.kind in ("title", "heading") else layout.ink
        return page.write(at, line, layout.fonts[block.kind], ink)
    scale = _fit(block.figure, layout)
    size = (max(1, round(block.figure.width * scale)), max(1, round(block.figure.height * scale)))
    x, y = round(at[0] + (layout.column_px - size[0]) / 2), round(at[1])
    page.image.paste(block.figure.resize(size, Image.Resampling.LANCZOS), (x, y))
    return (x, y, x + size[0], y + size[1])


def _write_lines(
    block: Block, page: Page, number: int, at: tuple[float, float], width: int, layout: Layout, language: str
) -> float:
    """Write a block over the whole width of the page, and return the y below it."""
    font, y = layout.fonts[block.kind], at[1]
    for line in wrap(block.text, font, width, language):
        block.boxes.append((number, _draw_line(block, line, page, (at[0], y), layout)))
        block.lines.append(line)
        y += round(line_height(font) * 1.15)
    return y + 8


def as_markdown(blocks: list[Block], language: str) -> str:
    """Return what is drawn of the blocks, in reading order. A picture is left out, its caption is kept."""
    marks, glue = {"title": "# ", "heading": "## "}, "" if language == "zh" else " "
    return "\n\n".join(marks.get(b.kind, "") + glue.join(b.lines) for b in blocks if b.figure is None)


def _ask(drawn: list[Block], task: str, language: str, rng: random.Random) -> tuple[str, str]:
    """Return the question and the answer. Raise Dropped if the pages have nothing to ask for."""
    questions = ASK[language][task]
    headings = [block for block in drawn if block.kind == "heading"]
    if task == "read":
        return rng.choice(questions), as_markdown(drawn, language)
    if task == "caption":
        captions = [block for block in drawn if block.kind == "caption" and block.is_whole]
        if not captions:
            raise Dropped("no figure fits the page")
        number = rng.randrange(len(captions))
        return rng.choice(questions).format(n=number + 1), captions[number].text
    if not headings:
        raise Dropped("no heading fits the page")
    if task == "headings":
        return rng.choice(questions), "\n".join(block.text for block in headings)
    if task == "page":
        asked = rng.choice(headings)
        return rng.choice(questions).format(heading=asked.text), str(asked.on_page()[0] + 1)
    texts = {
        heading.text: [b for b in drawn if b.kind == "paragraph" and b.section == heading.section]
        for heading in headings[:-1]  # the last section may end beyond the page
    }
    if not texts:
        raise Dropped("no section fits the page")
    asked_text = rng.choice(sorted(texts))
    question = rng.choice(questions).format(heading=asked_text)
    return question, "\n\n".join(block.text for block in texts[asked_text])


def _choose_place(drawn: list[Block], language: str, rng: random.Random) -> tuple[str, tuple[int, BoxPx]]:
    """Return a heading, or a figure by its number, and the page and box of it."""
    figures = [block for block in drawn if block.kind == "figure"]
    headings = [block for block in drawn if block.kind == "heading" and block.is_whole]
    if figures and rng.random() < 0.5:
        number = rng.randrange(len(figures))
        return FIGURE_LABEL[language].format(n=number + 1), figures[number].on_page()
    if not headings:
        raise Dropped("no heading fits the page")
    chosen = rng.choice(headings)
    if len({page for page, _ in chosen.boxes}) > 1 or any(chosen.text == b.text for b in drawn if b is not chosen):
        raise Dropped("the heading is on the page twice")
    return chosen.text, chosen.on_page()
