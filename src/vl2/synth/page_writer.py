"""Write HTML pages of a known content: articles, reports with tables, forms and receipts, in English and Chinese.

Every block of a page has an id, a type and its text in Markdown. A table's text is HTML without attributes but spans.
Running headers and footers are blocks too, of the types `header` and `footer`. The blocks are in reading order.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from html import escape, unescape
from typing import Literal

from vl2.synth import words
from vl2.synth.form import CHOICES, FIELDS, HEADS
from vl2.synth.html_pages import png_bytes, style
from vl2.synth.illustration import choose_illustration
from vl2.synth.receipt import EXTRA, TITLES
from vl2.synth.tables import Table, choose_table, made_up, tables_in
from vl2.synth.text_image import cut, whole_sentences

PageKind = Literal["article", "columns", "report", "form", "receipt"]
BlockType = Literal["title", "heading", "text", "list", "table", "figure", "caption", "header", "footer"]
KINDS: tuple[PageKind, ...] = ("article", "columns", "report", "form", "receipt")
RUNNING: tuple[BlockType, ...] = ("header", "footer")
SIZE = (794, 1123)  # px, A4 at 96 dpi
RECEIPT_SIZE = (420, 800)
HEADING_CHARS = {"en": 28, "zh": 10}
PARAGRAPH_CHARS = {"en": 420, "zh": 150}
CAPTION = {"en": "Figure {n}. {text}", "zh": "图{n} {text}"}
PAGE_NUMBER = {"en": "Page {n}", "zh": "第{n}页"}
TICKED, OPEN = "☑", "☐"
SHOWN = {TICKED: "×", OPEN: ""}  # drawn in a square, because few fonts have the characters
TABLE_STYLES = {
    "grid": "border-collapse: collapse } td, th { border: 1px solid #444",
    "rules": "border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222 } "
    "th { border-bottom: 1px solid #222",
    "plain": "",
}
_STYLE = (
    "h1 {{ font-size: 1.6em; line-height: 1.2; margin: 0 0 .5em }} h2 {{ font-size: 1.2em; margin: .6em 0 .3em }}\n"
    "p, ul, ol, figcaption {{ margin: 0 0 .6em }} ul, ol {{ padding-left: 1.4em }} img {{ display: block }}\n"
    "table {{ margin: .2em 0 .9em; {table} }} td, th {{ padding: .15em .6em; text-align: left; font-weight: normal }}\n"
    "figure {{ margin: .2em 0 .6em }} .columns {{ columns: 2; column-gap: 32px }}\n"
    ".box {{ display: inline-block; width: .8em; height: .8em; border: 1px solid #222; line-height: .75em; "
    "text-align: center; margin-right: .3em }}\n"
    "#header, #footer {{ position: fixed; left: 0; right: 0; font-size: .75em; color: #555 }}\n"
    "#header {{ top: -{outside}px }} #footer {{ bottom: -{outside}px; text-align: center }}\n"
)


@dataclass(frozen=True, kw_only=True)
class PageBlockTruth:
    """A block of a page as it was written."""

    id: str
    type: BlockType
    text: str  # Markdown; HTML for a table; "" for a figure


@dataclass(frozen=True, kw_only=True)
class WrittenPage:
    kind: PageKind
    html: str
    blocks: tuple[PageBlockTruth, ...]  # in reading order
    files: dict[str, bytes]

    @property
    def text(self) -> str:
        """Every character that the page shows in its font, and some more."""
        shown = re.sub(rf"<[^>]*>|[{TICKED}{OPEN}]", " ", "".join(block.text for block in self.blocks))
        return unescape(shown) + "×1234567890."


def write_page(rng: random.Random, language: str, kind: PageKind, texts: str | None = None) -> WrittenPage:
    """Write a random page of a kind. `texts` is a file of passages; None takes the built-in ones."""
    writer = _Writer(rng=rng, language=language, texts=texts)
    body = {
        "article": lambda: writer.article(columns=False), "columns": lambda: writer.article(columns=True),
        "report": writer.report, "form": writer.form, "receipt": writer.receipt,
    }[kind]()  # fmt: skip
    width, height = RECEIPT_SIZE if kind == "receipt" else SIZE
    margin = 24 if kind == "receipt" else rng.randrange(56, 80)
    size = rng.randrange(15, 18) if kind == "columns" else rng.randrange(16, 20)
    sheet = style(width, height, margin, size) + _STYLE.format(table=writer.table_style, outside=margin - 20)
    html = f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="utf-8"><style>{sheet}</style></head>'
    return WrittenPage(
        kind=kind, html=f"{html}<body>{body}</body></html>", blocks=tuple(writer.blocks), files=writer.files
    )


@dataclass(kw_only=True)
class _Writer:
    rng: random.Random
    language: str
    texts: str | None
    blocks: list[PageBlockTruth] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table_style = TABLE_STYLES[self.rng.choice(sorted(TABLE_STYLES))]

    def article(self, *, columns: bool) -> str:
        """Sections with paragraphs, and a list, a table or a figure in each, of which two columns hold all three."""
        parts = [self._running("header", self.rng.choice(words.SHOPS[self.language])), self._heading(1)]
        extras = [self._list, self._table, self._figure]
        self.rng.shuffle(extras)
        flow = []
        for extra in extras[: 3 if columns else 2]:
            flow += [self._heading(2), self._paragraph(), extra()]
            flow += [self._paragraph()] if self.rng.random() < 0.5 else []
        parts.append(f'<div class="columns">{"".join(flow)}</div>' if columns else "".join(flow))
        number = PAGE_NUMBER[self.language].format(n=self.rng.randint(1, 90))
        return "".join([*parts, self._running("footer", number)])

    def report(self) -> str:
        """A title, and two or three tables, of which one has cells that span rows and columns."""
        parts = [self._heading(1), self._paragraph(), self._heading(2), self._spanning_table()]
        for _ in range(self.rng.randint(1, 2)):
            parts += [self._heading(2), self._table()]
        return "".join([*parts, self._running("footer", str(self.rng.randint(1, 90)))])

    def form(self) -> str:
        rng, language = self.rng, self.language
        name, date, city, address, phone, number, signed = FIELDS[language]
        person = words.name(rng, language)
        values = {
            name: person, date: words.date(rng, language), city: rng.choice(words.CITIES[language]),
            address: words.address(rng, language), phone: words.phone(rng), number: str(rng.randint(1000, 99999)),
            signed: person,
        }  # fmt: skip
        colon = "：" if language == "zh" else ": "
        parts = [self._block("title", f"# {(head := rng.choice(HEADS[language]))}", "h1", escape(head))]
        for title in rng.sample([t for t in values if t != signed], rng.randint(4, 6)):
            parts.append(self._block("text", f"{title}{colon}{values[title]}", "p"))
        for title, options in rng.sample(sorted(CHOICES[language].items()), 2):
            chosen = rng.choice(options)
            marks = [(TICKED if option == chosen else OPEN, option) for option in options]
            said = title + colon + " ".join(f"{mark} {option}" for mark, option in marks)
            shown = escape(title + colon) + " ".join(
                f'<span class="box">{SHOWN[mark]}</span>{escape(option)}&emsp;' for mark, option in marks
            )
            parts.append(self._block("text", said, "p", shown))
        return "".join([*parts, self._paragraph(), self._block("text", f"{signed}{colon}{person}", "p")])

    def receipt(self) -> str:
        rng, language, titles = self.rng, self.language, TITLES[self.language]
        goods = rng.sample(words.GOODS[language], rng.randint(3, 7))
        prices = [(rng.randint(1, 4), rng.randint(50, 3000)) for _ in goods]
        total = sum(count * price for count, price in prices)
        tax = total * 8 // 100
        money = [f"{cents // 100}.{cents % 100:02d}" for cents in (total, tax, total + tax)]
        rows = [
            [good, str(count), f"{count * price / 100:.2f}"] for good, (count, price) in zip(goods, prices, strict=True)
        ]
        shop, colon = rng.choice(words.SHOPS[language]), "：" if language == "zh" else ": "
        lines = [words.address(rng, language), f"{EXTRA[language]['phone']}{colon}{words.phone(rng)}",
                 f"{titles['date']}{colon}{words.date(rng, language)}",
                 f"{titles['no']}{colon}{rng.randint(1000, 99999)}"]  # fmt: skip
        self.table_style = "width: 100%; border-top: 1px dashed #444; border-bottom: 1px dashed #444"
        sums = [[titles[name], value] for name, value in zip(("sub", "tax", "total"), money, strict=True)]
        return "".join(
            [self._block("title", f"# {shop}", "h1", escape(shop)), *(self._block("text", line, "p") for line in lines),
             self._plain_table(rows), self._plain_table(sums), self._block("text", titles["thanks"], "p")]
        )  # fmt: skip

    def _block(self, type: BlockType, text: str, tag: str, inside: str | None = None) -> str:
        """Add a block and return its element. `inside` is its HTML, by default the text."""
        id = type if type in RUNNING else f"b{len(self.blocks)}"
        self.blocks.append(PageBlockTruth(id=id, type=type, text=text))
        return f'<{tag} id="{id}">{escape(text) if inside is None else inside}</{tag}>'

    def _running(self, type: BlockType, text: str) -> str:
        return self._block(type, text, "div")

    def _heading(self, level: int) -> str:
        text = self._words(HEADING_CHARS[self.language])
        return self._block("title" if level == 1 else "heading", f"{'#' * level} {text}", f"h{level}", escape(text))

    def _paragraph(self) -> str:
        joined = " " if self.language == "en" else ""
        passages = [self._passage() for _ in range(self.rng.randint(1, 3))]
        limit = PARAGRAPH_CHARS[self.language]
        return self._block("text", joined.join(dict.fromkeys(passages))[:limit].rstrip(), "p")

    def _passage(self) -> str:
        passage = words.choose_passage(self.rng, self.language, self.texts)
        kept = cut(self.rng, passage, self.language, PARAGRAPH_CHARS[self.language], from_start=True)
        return _plain(whole_sentences(kept))

    def _words(self, max_chars: int) -> str:
        passage = words.choose_passage(self.rng, self.language, self.texts)
        text = _plain(cut(self.rng, passage, self.language, max_chars)).strip(' ,;:.?!"，。；：！？、')
        return text or self.rng.choice(words.COMMON[self.language])

    def _list(self) -> str:
        items = [self._words(2 * HEADING_CHARS[self.language]) for _ in range(self.rng.randint(3, 5))]
        is_numbered = self.rng.random() < 0.5
        marks = [f"{n}." if is_numbered else "-" for n in range(1, len(items) + 1)]
        text = "\n".join(f"{mark} {item}" for mark, item in zip(marks, items, strict=True))
        inside = "".join(f"<li>{escape(item)}</li>" for item in items)
        return self._block("list", text, "ol" if is_numbered else "ul", inside)

    def _figure(self) -> str:
        name = f"figure-{len(self.files) + 1}.png"
        image = choose_illustration(self.rng, None, 240)
        self.files[name] = png_bytes(image.convert("RGB"))
        picture = self._block("figure", "", "div", f'<img src="{name}" width="{image.width}">')
        text = CAPTION[self.language].format(n=len(self.files), text=self._words(2 * HEADING_CHARS[self.language]))
        return f"<figure>{picture}{self._block('caption', text, 'figcaption')}</figure>"

    def _table(self) -> str:
        table = self._random_table()
        return self._plain_table([table.header, *table.rows])

    def _random_table(self) -> Table:
        built_in = choose_table(self.rng, tables_in(None, (self.language,)), max_rows=6, max_columns=4)
        return built_in if built_in is not None and self.rng.random() < 0.5 else made_up(self.rng, self.language)

    def _plain_table(self, rows: list[list[str]] | list[tuple[str, ...]]) -> str:
        return self._html_table([[(cell, 1, 1) for cell in row] for row in rows])

    def _spanning_table(self) -> str:
        """A table whose first column groups two rows, below a heading over the other columns."""
        table = self._random_table()
        groups = self.rng.sample(words.CITIES[self.language], (len(table.rows) + 1) // 2)
        rows = [[("", 1, 1), (self._words(HEADING_CHARS[self.language]), 1, len(table.header))]]
        rows.append([(self.rng.choice(FIELDS[self.language]), 1, 1), *((cell, 1, 1) for cell in table.header)])
        for number, row in enumerate(table.rows):
            last = number == len(table.rows) - 1
            group = [(groups[number // 2], 1 if last else 2, 1)] if number % 2 == 0 else []
            rows.append([*group, *((cell, 1, 1) for cell in row)])
        return self._html_table(rows)

    def _html_table(self, rows: list[list[tuple[str, int, int]]]) -> str:
        """Add a table; a cell is its text, and how many rows and columns it spans."""
        lines = []
        for row in rows:
            cells = [f"<td{_spans(down, across)}>{escape(text, quote=False)}</td>" for text, down, across in row]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        inside = "".join(lines)
        return self._block("table", f"<table>{inside}</table>", "table", inside)


def _spans(rows: int, columns: int) -> str:
    return (f' rowspan="{rows}"' if rows > 1 else "") + (f' colspan="{columns}"' if columns > 1 else "")


def _plain(text: str) -> str:
    """Return a text without what Markdown would read as markup."""
    return " ".join(re.sub(r"[*_`#|<>\[\]$\\]", " ", text).split())
