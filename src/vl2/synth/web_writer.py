"""Write the HTML of random web pages: own CSS or a style sheet of a framework, with blocks of text, pictures and forms.

A page that uses a style sheet links to it by its file name. Bootstrap and Bulma need classes on their elements; other
style sheets (Pico, Simple.css, Water.css, ...) style plain elements.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path

from vl2.errors import UserError
from vl2.synth import words
from vl2.synth.illustration import choose_illustration
from vl2.synth.text_image import cut, whole_sentences

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
COLUMNS = {"en": ("Name", "Count"), "zh": ("名称", "数量")}
BLOCKS = ("hero", "form", "list", "table", "article", "cards", "pictures")
LINK_CHARS = {"en": 20, "zh": 8}
TEXT_CHARS = {"en": 320, "zh": 120}
PICTURE_PX = 300
# Classes of the elements, by framework. `{color}` is one of COLORS, chosen per page.
CLASSES: Mapping[str, Mapping[str, str]] = {
    "bootstrap": {
        "header": "navbar navbar-expand navbar-dark bg-{color} px-3", "menu": "nav-link text-white px-2",
        "section": "container py-3", "button": "btn btn-{color}", "input": "form-control mb-2",
        "table": "table table-striped", "list": "list-group", "item": "list-group-item",
        "footer": "text-muted p-3 border-top", "cards": "row row-cols-3 g-3", "cell": "col", "card": "card h-100 p-2",
        "picture": "img-fluid rounded",
    },
    "bulma": {
        "header": "navbar is-{color} px-4", "menu": "navbar-item", "section": "section py-4",
        "button": "button is-{color}", "input": "input mb-2", "table": "table is-striped", "list": "menu-list",
        "footer": "footer p-4", "cards": "columns", "cell": "column", "card": "card p-3", "picture": "image",
    },
}  # fmt: skip
OWN_CLASSES = {"cards": "cards", "card": "card"}
COLORS = {
    "bootstrap": "primary success danger dark secondary",
    "bulma": "primary link info success danger dark",
}


@lru_cache(maxsize=4)
def read_style_sheets(folder: str) -> dict[str, bytes]:
    """Return the CSS files of a folder by name. Raise UserError if there are none."""
    found = {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.css"))}
    if not found:
        raise UserError(f"{folder} holds no style sheet: `vl2 data fetch style_sheets` gets some")
    return found


@dataclass(kw_only=True)
class WebWriter:
    """Writes one page. `files` gets the pictures that the page shows, and `sheet` is a file name or ""."""

    rng: random.Random
    language: str
    sheet: str = ""
    texts: str | None = None
    photographs: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.framework = next((name for name in CLASSES if self.sheet.startswith(name)), "")
        self.color = self.rng.choice(COLORS[self.framework].split()) if self.framework else ""

    def page(self) -> str:
        """Return the HTML of the page: a menu, one to three blocks, and in half of the cases a footer."""
        rng, language = self.rng, self.language
        accent = rng.choice(ACCENTS)
        blocks = rng.sample(BLOCKS, rng.randint(1, 3))
        sections = [str(getattr(self, f"_{block}")()) for block in blocks]
        if self.sheet and not self.framework:  # such style sheets give the parts of <body> their margins
            sections = ["<main>", *sections, "</main>"]
        parts = [self._header(), *sections]
        if rng.random() < 0.5:
            shop = escape(rng.choice(words.SHOPS[language]))
            parts.append(f"{self._open('footer')}© {rng.randint(2015, 2026)} {shop}</footer>")
        body = "\n".join(parts)
        style = f"<style>\n{self._own_style(accent)}\n</style>"
        if self.sheet:
            style = f'<link rel="stylesheet" href="{escape(self.sheet)}">'
            if not self.framework:
                style += f"\n<style>\n{CARDS_STYLE}\n</style>"
        head = (
            '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
            f"<title>{escape(rng.choice(words.SHOPS[language]))}</title>\n{style}"
        )
        return f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>'

    def _open(self, tag: str, role: str = "", more: str = "") -> str:
        """Return an opening tag with the classes that the framework, or our own CSS, needs for it."""
        known = CLASSES.get(self.framework, OWN_CLASSES)
        classes = known.get(role or tag, "").format(color=self.color)
        attribute = f' class="{classes}"' if classes else ""
        return f"<{tag}{attribute}{more}>"

    def _section(self, *lines: str) -> str:
        inside = "\n".join(f"  {line}" for line in lines)
        return f"{self._open('section')}\n{inside}\n</section>"

    def _heading(self, known: tuple[str, ...], level: int = 2) -> str:
        return f"<h{level}>{escape(self._label(known))}</h{level}>"

    def _label(self, known: tuple[str, ...]) -> str:
        """Return one of the usual labels, or if texts are given mostly some words of these."""
        if self.texts is None or self.rng.random() < 0.4:
            return self.rng.choice(known)
        passage = words.choose_passage(self.rng, self.language, self.texts)
        return cut(self.rng, passage, self.language, LINK_CHARS[self.language]).strip(" ,;:.") or known[0]

    def _labels(self, known: tuple[str, ...], count: int) -> list[str]:
        """Return different labels: up to `count`, at least one."""
        return list(dict.fromkeys(self._label(known) for _ in range(count)))

    def _text(self) -> str:
        passage = words.choose_passage(self.rng, self.language, self.texts)
        limit = TEXT_CHARS[self.language]
        return escape(whole_sentences(cut(self.rng, passage, self.language, limit, from_start=True)))

    def _button(self) -> str:
        return f"{self._open('button')}{escape(self._label(BUTTONS[self.language]))}</button>"

    def _picture(self, max_px: int) -> str:
        """Return the tag of a new picture, whose file is added to `files`."""
        image = choose_illustration(self.rng, self.photographs, max_px)
        name, buffer = f"picture-{len(self.files) + 1}.jpg", io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=90)
        self.files[name] = buffer.getvalue()
        size = f' src="{name}" alt="" width="{image.width}" height="{image.height}"'
        return self._open("img", "picture", size)

    def _header(self) -> str:
        names = self._labels(MENU[self.language], self.rng.randint(3, 5))
        opened = self._open("a", "menu", ' href="#"')
        links = "\n".join(f"  {opened}{escape(name)}</a>" for name in names)
        inside = f"<nav>\n{links}\n</nav>" if self.sheet and not self.framework else links
        return f"{self._open('header')}\n{inside}\n</header>"

    def _hero(self) -> str:
        buttons = " ".join(self._button() for _ in range(self.rng.randint(1, 2)))
        picture = [self._picture(2 * PICTURE_PX)] if self.rng.random() < 0.4 else []
        title = self._heading(words.SHOPS[self.language], 1)
        return self._section(title, *picture, f"<p>{self._text()}</p>", buttons)

    def _form(self) -> str:
        fields = self.rng.sample(FIELDS[self.language], self.rng.randint(2, 4))
        inputs = [self._open("input", "", f' placeholder="{escape(name)}"') for name in fields]
        if self.sheet and not self.framework:
            inputs = [f"<p>{each}</p>" for each in inputs]
        return self._section(*inputs, self._button())

    def _list(self) -> str:
        goods, item = self._labels(words.GOODS[self.language], self.rng.randint(3, 6)), self._open("li", "item")
        items = [f'  {item}<a href="#">{escape(good)}</a> {self._price()}</li>' for good in goods]
        return self._section(self._heading(MENU[self.language]), self._open("ul", "list"), *items, "</ul>")

    def _table(self) -> str:
        names = self._labels(words.GOODS[self.language], self.rng.randint(2, 5))
        rows = [f"  <tr><td>{escape(name)}</td><td>{self.rng.randint(1, 90)}</td></tr>" for name in names]
        top = "".join(f"<th>{cell}</th>" for cell in COLUMNS[self.language])
        return self._section(self._open("table"), f"  <tr>{top}</tr>", *rows, "</table>")

    def _article(self) -> str:
        paragraphs = [f"<p>{self._text()}</p>" for _ in range(self.rng.randint(1, 3))]
        picture = [self._picture(2 * PICTURE_PX)] if self.rng.random() < 0.7 else []
        link = f'<a href="#">{escape(self._label(BUTTONS[self.language]))}</a>'
        return self._section(self._heading(MENU[self.language]), *picture, *paragraphs, link)

    def _cards(self) -> str:
        cells = []
        for _ in range(3):
            title = self._heading(words.GOODS[self.language])
            inside = f"{self._picture(PICTURE_PX)}{title}<p>{self._price()}</p>{self._button()}"
            card = f"{self._open('div', 'card')}{inside}</div>"
            cells.append(f"  {self._open('div', 'cell')}{card}</div>" if self.framework else f"  {card}")
        return self._section(self._open("div", "cards"), *cells, "</div>")

    def _pictures(self) -> str:
        pictures = [self._picture(PICTURE_PX) for _ in range(self.rng.randint(1, 3))]
        return self._section(self._heading(MENU[self.language]), *pictures)

    def _price(self) -> str:
        return f"{self.rng.randint(1, 60)}.{self.rng.randint(0, 99):02d}"

    def _own_style(self, accent: str) -> str:
        rng, dark = self.rng, self.rng.random() < 0.2
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
                f"img {{ max-width: 100%; height: auto; border-radius: {radius}px; }}",
                "input { display: block; margin: 8px 0; padding: 8px; width: 240px; }",
                "table { border-collapse: collapse; } td, th { border: 1px solid #999; padding: 6px 12px; }",
                CARDS_STYLE,
                "footer { padding: 16px 24px; font-size: 13px; opacity: 0.7; }",
            )
        )


CARDS_STYLE = "\n".join(
    (
        ".cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; }",
        ".card { border: 1px solid #8885; padding: 10px; } .card h2 { font-size: 17px; }",
        "img { max-width: 100%; height: auto; }",
    )
)
