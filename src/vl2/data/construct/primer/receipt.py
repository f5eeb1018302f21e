"""Small receipts: a shop, a date, one to four goods with their prices, a total, and several questions about them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from PIL.Image import Image

from vl2.data.construct import fonts, words
from vl2.data.construct.distort import distort
from vl2.data.construct.draft import Draft
from vl2.data.construct.page import Page, line_height, text_width
from vl2.data.construct.paper import ink_for, make_paper
from vl2.data.construct.primer.writing import LEAST_PX, choose_face, choose_language
from vl2.data.construct.receipt import QUESTIONS, TITLES, money
from vl2.data.construct.source import Dropped, Source

LARGEST = (336, 336)  # px
Row = tuple[str, str]  # what stands left and right, or in the middle where there is no right


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a small receipt says."""

    shop: str
    date: str
    prices: dict[str, str]
    total: str

    def rows(self, language: str) -> list[Row]:
        title = TITLES[language]["total"]
        return [(self.shop, ""), (self.date, ""), *self.prices.items(), (title, self.total)]


@dataclass(frozen=True, kw_only=True)
class PrimerReceipt(Source):
    """Receipts of one to four tiles with up to `turns` questions."""

    name = "primer_receipt"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("total", "price", "shop", "date", "read")

    font_folders: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ("en", "zh")
    turns: int = 4
    max_distortions: int = 0

    def draft(self, rng: random.Random) -> Draft:
        language = choose_language(rng, self.languages, self.font_folders)
        bill = _make_bill(rng, language)
        rows = bill.rows(language)
        face = choose_face(rng, "".join(left + right for left, right in rows), self.font_folders)
        picture = distort(_print(rows, face, rng), rng, rng.randint(0, self.max_distortions))
        draft = Draft(language=language, traits={"font": face.name, "goods": str(len(bill.prices))})
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        asked = set[str]()
        for _ in range(rng.randint(1, self.turns)):
            question, answer = _ask(bill, self.pick_task(rng), language, rng)
            if question not in asked:
                asked.add(question)
                draft.ask(question, answer)
        return draft


def _make_bill(rng: random.Random, language: str) -> Bill:
    goods = rng.sample(words.GOODS[language], rng.randint(1, 4))
    cents = [rng.randint(40, rng.choice((999, 2999))) for _ in goods]
    return Bill(
        shop=rng.choice(words.SHOPS[language]),
        date=words.date(rng, language),
        prices=dict(zip(goods, map(money, cents), strict=True)),
        total=money(sum(cents)),
    )


def _print(rows: list[Row], face: fonts.Face, rng: random.Random) -> Image:
    """Print the rows at a size at which they fit, as large as was wished for if it can be."""
    margin, gap = rng.randint(6, 16), rng.randint(16, 48)
    for size_px in range(rng.randint(15, 24), LEAST_PX - 1, -1):
        font = fonts.load(face, size_px)
        step = round(line_height(font) * 1.15)
        inner = max(text_width(font, left) + (text_width(font, right) + gap if right else 0) for left, right in rows)
        size = (inner + 2 * margin, step * len(rows) + 2 * margin)
        if size[0] <= LARGEST[0] and size[1] <= LARGEST[1]:
            break
    else:
        raise Dropped("the receipt is too large")
    kind = rng.choice(("white", "plain", "noise", "gradient"))
    page, ink = Page(make_paper(kind, size, rng)), ink_for(kind, rng)
    for number, (left, right) in enumerate(rows):
        y = margin + number * step
        if right:
            page.write((margin, y), left, font, ink)
            page.write((size[0] - margin, y), right, font, ink, "ra")
        else:
            page.write((size[0] / 2, y), left, font, ink, "ma")
    rule = margin + (len(rows) - 1) * step - 2
    page.draw.line((margin, rule, size[0] - margin, rule), fill=ink)
    return page.image


def _ask(bill: Bill, task: str, language: str, rng: random.Random) -> tuple[str, str]:
    question = rng.choice(QUESTIONS[language][task])
    if task == "price":
        good = rng.choice(tuple(bill.prices))
        return question.format(item=good), bill.prices[good]
    if task == "read":
        return question, "\n".join(f"{left} {right}".strip() for left, right in bill.rows(language))
    return question, {"total": bill.total, "shop": bill.shop, "date": bill.date}[task]
