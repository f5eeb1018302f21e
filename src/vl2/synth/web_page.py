"""Render web pages with a headless browser, and ask for their code or the location of buttons, links and fields."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import ClassVar

from vl2.data import locate_phrases
from vl2.synth import fonts, words
from vl2.synth.browser import Element, render
from vl2.synth.draft import Draft
from vl2.synth.source import Dropped, Source

FAMILIES = ("sans-serif", "serif", "Georgia, serif", "Verdana, sans-serif", "monospace", "system-ui")
ACCENTS = ("#2563eb", "#b91c1c", "#047857", "#7c3aed", "#c2410c", "#0f766e", "#334155", "#be185d")
MENU = {
    "en": ("Home", "Products", "About us", "Contact", "Blog", "Prices", "Help", "Careers"),
    "zh": ("首页", "产品", "关于我们", "联系方式", "博客", "价格", "帮助", "招聘"),
}
BUTTONS = {
    "en": ("Sign up", "Learn more", "Add to cart", "Send", "Save", "Cancel", "Search", "Download", "Subscribe"),
    "zh": ("注册", "了解更多", "加入购物车", "发送", "保存", "取消", "搜索", "下载", "订阅"),
}
FIELDS = {
    "en": ("Your name", "E-mail address", "Password", "Message", "City", "Telephone"),
    "zh": ("您的姓名", "电子邮箱", "密码", "留言", "城市", "电话"),
}
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
    """Pages with a menu, a headline and some blocks. This needs Chromium, and about a second per page."""

    name = "web_page"
    category = "web_to_code"
    tasks_known: ClassVar[tuple[str, ...]] = ("code", "locate")

    languages: tuple[str, ...] = ("en", "zh")
    font_folders: tuple[str, ...] | None = None  # used in addition to the fonts of the system

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice([lang for lang in self.languages if lang in self._drawable()] or ["en"])
        task, page, width = self.pick_task(rng), write_page(rng, language), rng.randrange(520, 1000, 20)
        drawn = render(page, width, self.font_folders or ())
        draft = Draft(language=language, traits={"task": task, "width": str(width)})
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


def write_page(rng: random.Random, language: str) -> str:
    """Return the HTML of a random page with a style sheet, a menu and one to three blocks below it."""
    accent = rng.choice(ACCENTS)
    blocks = rng.sample(sorted(_BLOCKS), rng.randint(1, 3))
    parts = [_header(rng, language), *(_BLOCKS[block](rng, language) for block in blocks)]
    if rng.random() < 0.5:
        parts.append(f"<footer>© {rng.randint(2015, 2026)} {escape(rng.choice(words.SHOPS[language]))}</footer>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8">\n<title>{escape(rng.choice(words.SHOPS[language]))}</title>'
    style = f"<style>\n{_style(rng, accent)}\n</style>"
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n{head}\n{style}\n</head>\n<body>\n{body}\n</body>\n</html>'
    )


def _style(rng: random.Random, accent: str) -> str:
    dark = rng.random() < 0.2
    ink, paper = ("#eee", "#1b1e24") if dark else ("#222", rng.choice(("#fff", "#fafafa", "#fdf8ef", "#f1f5f9")))
    radius, align = rng.choice((0, 4, 8, 18)), rng.choice(("left", "left", "center"))
    return "\n".join(
        (
            f"body {{ margin: 0; font-family: {rng.choice(FAMILIES)}; color: {ink}; background: {paper}; }}",
            f"header {{ background: {accent}; padding: {rng.randint(10, 20)}px 24px; }}",
            "header a { color: white; margin-right: 20px; text-decoration: none; }",
            f"a {{ color: {'inherit' if dark else accent}; }}",
            f"section {{ padding: {rng.randint(12, 28)}px 24px; text-align: {align}; }}",
            "ul { display: inline-block; text-align: left; }",
            f"button {{ background: {accent}; color: white; border: 0; padding: 10px 18px; }}",
            f"button {{ border-radius: {radius}px; }}",
            "input { display: block; margin: 8px 0; padding: 8px; width: 240px; }",
            "table { border-collapse: collapse; } td, th { border: 1px solid #999; padding: 6px 12px; }",
            "footer { padding: 16px 24px; font-size: 13px; opacity: 0.7; }",
        )
    )


def _header(rng: random.Random, language: str) -> str:
    links = "\n".join(f'  <a href="#">{escape(name)}</a>' for name in rng.sample(MENU[language], rng.randint(3, 5)))
    return f"<header>\n{links}\n</header>"


def _hero(rng: random.Random, language: str) -> str:
    title, text = rng.choice(words.SHOPS[language]), rng.choice(words.PASSAGES[language])
    buttons = " ".join(f"<button>{escape(name)}</button>" for name in rng.sample(BUTTONS[language], rng.randint(1, 2)))
    return f"<section>\n  <h1>{escape(title)}</h1>\n  <p>{escape(text)}</p>\n  {buttons}\n</section>"


def _form(rng: random.Random, language: str) -> str:
    fields = rng.sample(FIELDS[language], rng.randint(2, 4))
    inputs = "\n".join(f'  <input placeholder="{escape(name)}">' for name in fields)
    return f"<section>\n{inputs}\n  <button>{escape(rng.choice(BUTTONS[language]))}</button>\n</section>"


def _list(rng: random.Random, language: str) -> str:
    goods = rng.sample(words.GOODS[language], rng.randint(3, 6))
    items = "\n".join(
        f'    <li><a href="#">{escape(good)}</a> {rng.randint(1, 60)}.{rng.randint(0, 99):02d}</li>' for good in goods
    )
    return f"<section>\n  <h2>{escape(rng.choice(MENU[language]))}</h2>\n  <ul>\n{items}\n  </ul>\n</section>"


def _table(rng: random.Random, language: str) -> str:
    head = ("名称", "数量") if language == "zh" else ("Name", "Count")
    rows = [(good, str(rng.randint(1, 90))) for good in rng.sample(words.GOODS[language], rng.randint(2, 5))]
    body = "\n".join("    <tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<section>\n  <table>\n    <tr>{top}</tr>\n{body}\n  </table>\n</section>"


_BLOCKS: dict[str, Callable[[random.Random, str], str]] = {
    "hero": _hero,
    "form": _form,
    "list": _list,
    "table": _table,
}
