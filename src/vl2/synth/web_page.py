"""Render web pages with a headless browser, and ask for their code or the location of buttons, links and fields."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from vl2.data import locate_phrases
from vl2.synth import fonts
from vl2.synth.browser import Element, render
from vl2.synth.builtin_inputs import missing_texts
from vl2.synth.draft import Draft
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source
from vl2.synth.web_writer import WebWriter, read_style_sheets

TO_CODE = {
    "en": (
        "Write the HTML of this page.",
        "Convert the screenshot to HTML with CSS.",
        "Which code makes this web page?",
    ),
    "zh": ("请写出这个网页的HTML代码。", "把这张网页截图转换成HTML和CSS。"),
}
POINT = {
    "en": "Where do I click for <|ref|>{label}<|/ref|>?",
    "zh": "<|ref|>{label}<|/ref|>应该点击哪里？",
}


@dataclass(frozen=True, kw_only=True)
class WebPage(Source):
    """Pages with a menu and blocks of text, pictures, forms and tables. This needs Chromium, and a second per page."""

    name = "web_page"
    category = "web_to_code"
    tasks_known: ClassVar[tuple[str, ...]] = ("code", "locate")

    texts_en: str | None = None  # a text file with a passage per line, or a corpus; None uses the built-in passages
    texts_zh: str | None = None
    style_sheets: str | None = None  # folder of CSS files for three quarters of the pages; None writes own CSS
    photographs: str | None = None  # folder of images; None draws scenes
    languages: tuple[str, ...] = ("en", "zh")
    font_folders: tuple[str, ...] | None = None  # used in addition to the fonts of the system

    def own_licence(self) -> str:
        given = self.texts_en or self.texts_zh or self.photographs
        return UNKNOWN_LICENCE if given else super().own_licence()

    def builtin_inputs(self) -> tuple[str, ...]:
        # The browser draws the system's fonts too.
        drawn = tuple(language for language in self.languages if language in self._drawable())
        return missing_texts(drawn, self.texts_en, self.texts_zh, None)

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice([lang for lang in self.languages if lang in self._drawable()] or ["en"])
        task, width = self.pick_task(rng), rng.randrange(520, 1000, 20)
        sheets = read_style_sheets(self.style_sheets) if self.style_sheets else {}
        sheet = rng.choice(sorted(sheets)) if sheets and rng.random() < 0.75 else ""
        texts = self.texts_zh if language == "zh" else self.texts_en
        writer = WebWriter(rng=rng, language=language, sheet=sheet, texts=texts, photographs=self.photographs)
        page = writer.page()
        files = {**writer.files, sheet: sheets[sheet]} if sheet else writer.files
        drawn = render(page, width, self.font_folders or (), files=files)
        draft = Draft(language=language, traits={"task": task, "width": str(width), "sheet": sheet})
        draft.picture(drawn.image)
        if task == "code":
            draft.ask(rng.choice(TO_CODE[language]), f"```html\n{page}\n```")
            return draft
        usable = [e for e in drawn.elements if e.label and e.tag not in ("h1", "h2")]
        if not usable:
            raise Dropped("nothing to point at")
        _ask_place(draft, list(drawn.elements), rng.choice(usable), rng)
        return draft

    def _drawable(self) -> tuple[str, ...]:
        """Return the languages that the browser has fonts for."""
        own = fonts.languages(self.font_folders) if self.font_folders else ()
        return max(fonts.languages(), own, key=len)


def _ask_place(draft: Draft, elements: list[Element], chosen: Element, rng: random.Random) -> None:
    draft.category = "gui"
    boxes = sorted(e.box for e in elements if e.label == chosen.label and e.tag not in ("h1", "h2"))
    language, label = draft.language, chosen.label
    question = (
        POINT[language].format(label=label) if rng.random() < 0.4 else locate_phrases.locate(rng, language, label)
    )
    draft.ask(question, draft.box(label, boxes))
