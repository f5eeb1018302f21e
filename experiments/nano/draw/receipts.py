"""Receipts as shops print them: a head, goods with prices, sums, tax, what was given; of one tile to nine."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from experiments.nano.draw.answers import CANNOT_TELL
from experiments.nano.draw.base import NanoSource, Written
from experiments.nano.draw.frame import MOST_PX, is_wanted, scale_of
from experiments.nano.draw.phrasing import phrase
from experiments.nano.draw.vocabulary import cased, names, word
from vl2.synth import fonts, words
from vl2.synth.draft import Draft
from vl2.synth.page import ink_for, line_height, make_paper, text_width
from vl2.synth.source import Dropped

LEAST_SEEN_PX = 9.0
LEFT, RIGHT = 0, 1
TOTAL = {
    "en": ("TOTAL", "Total", "TOTAL DUE", "Amount due", "Grand total", "TOTAL AMOUNT"),
    "zh": ("合计", "总计", "应付", "总金额"),
}
BEFORE = {"en": ("Subtotal", "SUB TOTAL", "Net", "Items"), "zh": ("小计", "金额")}
TAX = {"en": ("Tax", "GST 6%", "VAT 20%", "Service"), "zh": ("税", "服务费")}
GIVEN = {"en": ("Cash", "CASH", "Card", "Paid"), "zh": ("现金", "实收")}
CHANGE = {"en": ("Change", "CHANGE"), "zh": ("找零",)}
SHOP = {
    "en": ("{} Store", "{} & Co", "{} SDN BHD", "The {} Shop", "{} Cafe", "{} Market", "{}"),
    "zh": ("{}超市", "{}商店", "{}餐厅", "{}书店", "{}"),
}
THANKS = {
    "en": ("Thank you!", "THANK YOU", "Please come again", "Goods sold are not returnable"),
    "zh": ("谢谢惠顾", "欢迎再来"),
}
SIGNS = ("", "", "$", "RM ", "€")


@dataclass(frozen=True)
class Row:
    """What stands left and right; in the middle where there is no right."""

    left: str
    right: str = ""


@dataclass(frozen=True)
class Bill:
    """The rows, and which of them are asked for."""

    rows: tuple[Row, ...]
    shop: int
    date: int
    goods: tuple[int, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class Receipts(NanoSource):
    """Tasks "total", "price", "shop", "date", "unknown" and "read"."""

    name = "nano_receipts"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("total", "total", "price", "shop", "date", "unknown", "read")

    turns: int = 5

    def page(self, rng: random.Random) -> Written:
        return self._draw(rng, rng.choice(self.languages))[1]

    def _draw(self, rng: random.Random, language: str) -> tuple[Bill, Written]:
        bill = make_bill(rng, self.inputs, language)
        return bill, _print(rng, bill, self.face(rng, "".join(row.left + row.right for row in bill.rows)))

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice(self.languages)
        bill, written = self._draw(rng, language)
        draft = Draft(language=language)
        written.picture(draft, rng)
        asked = set[str]()
        for _ in range(rng.randint(1, self.turns)):
            task = self.pick_task(rng)
            if task in asked:
                continue
            asked.add(task)
            if task == "read":
                keys = [
                    (n, side) for n in range(len(bill.rows)) for side in (LEFT, RIGHT) if (n, side) in written.texts
                ]
                answer = "\n".join(f"{row.left} {row.right}".strip() for row in bill.rows)
                draft.ask(phrase("read_lines", language, rng), answer, written.show(draft, keys))
                break
            if task == "unknown":
                other = word(rng, self.inputs, language)
                draft.ask(phrase("receipt_price", language, rng, item=other), CANNOT_TELL[language])
                continue
            at = (
                rng.choice(bill.goods)
                if task == "price"
                else {"shop": bill.shop, "date": bill.date, "total": bill.total}[task]
            )
            row = bill.rows[at]
            question = phrase(f"receipt_{task}", language, rng, item=row.left)
            seen = [(at, LEFT), (at, RIGHT)] if row.right else [(at, LEFT)]
            draft.ask(question, row.right or row.left, written.show(draft, seen))
        return draft


def make_bill(rng: random.Random, inputs: str, language: str) -> Bill:
    """Make up a receipt."""
    sign = rng.choice(SIGNS) if language == "en" else rng.choice(("", "¥"))
    shop = rng.choice(SHOP[language]).format(
        cased(rng, word(rng, inputs, language)) if language == "en" else word(rng, inputs, language)
    )
    rows = [Row(shop.upper() if rng.random() < 0.4 else shop)]
    if rng.random() < 0.4:
        rows.append(
            Row(
                f"{rng.randint(1, 199)} {word(rng, inputs, 'en')} Road"
                if language == "en"
                else f"{word(rng, inputs, 'zh')}路{rng.randint(1, 199)}号"
            )
        )
    if rng.random() < 0.3:
        rows.append(Row(f"Tel {words.phone(rng)}" if language == "en" else f"电话{words.phone(rng)}"))
    rows.append(Row(words.date(rng, language)))
    date = len(rows) - 1
    first = len(rows)
    cents = [rng.randint(20, rng.choice((999, 2999, 19999))) for _ in range(rng.randint(1, 7))]
    goods = names(rng, inputs, language, len(cents), 14 if language == "en" else 6, kinds=("nouns",))
    cents = cents[: len(goods)]
    if not goods:
        raise Dropped("no names are as short as wished")
    rows += [Row(name, _money(cent)) for name, cent in zip(goods, cents, strict=True)]
    total = sum(cents)
    if rng.random() < 0.4:
        rows.append(Row(rng.choice(BEFORE[language]), _money(total)))
        if rng.random() < 0.7:
            tax = round(total * rng.choice((0.06, 0.1, 0.2)))
            rows.append(Row(rng.choice(TAX[language]), _money(tax)))
            total += tax
    rows.append(Row(rng.choice(TOTAL[language]), sign + _money(total)))
    at = len(rows) - 1
    if rng.random() < 0.4:
        given = (total // 1000 + 1) * 1000
        rows += [
            Row(rng.choice(GIVEN[language]), _money(given)),
            Row(rng.choice(CHANGE[language]), _money(given - total)),
        ]
    if rng.random() < 0.3:
        rows.append(Row(rng.choice(THANKS[language])))
    return Bill(rows=tuple(rows), shop=0, date=date, goods=tuple(range(first, first + len(goods))), total=at)


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _print(rng: random.Random, bill: Bill, face: fonts.Face) -> Written:
    """Print the rows at a size at which they can be read in the tiles that they get."""
    for _ in range(12):
        font = fonts.load(face, rng.randint(10, 30))
        margin, gap = round(font.size * rng.uniform(0.3, 1.5)), round(font.size * rng.uniform(1, 4))
        step = line_height(font) * rng.uniform(1.0, 1.35)
        inner = max(
            text_width(font, row.left) + (text_width(font, row.right) + gap if row.right else 0) for row in bill.rows
        )
        size = (inner + 2 * margin, round(step * len(bill.rows)) + 2 * margin)
        if max(size) <= MOST_PX and font.size * scale_of(size) >= LEAST_SEEN_PX and is_wanted(rng, size):
            break
    else:
        raise Dropped("the receipt is too large to be read")
    kind = rng.choice(("white", "plain", "noise", "gradient", "folded"))
    written, ink = Written(make_paper(kind, size, rng)), ink_for(kind, rng)
    for n, row in enumerate(bill.rows):
        y = margin + n * step
        if not row.right:
            at, anchor = ((size[0] / 2, y), "ma") if rng.random() < 0.7 else ((margin, y), "la")
            written.write((n, LEFT), at, row.left, font, ink, anchor)
            continue
        written.write((n, LEFT), (margin, y), row.left, font, ink)
        written.write((n, RIGHT), (size[0] - margin, y), row.right, font, ink, "ra")
    if rng.random() < 0.6:
        y = margin + bill.total * step - 2
        written.page.draw.line((margin, y, size[0] - margin, y), fill=ink)
    return written
