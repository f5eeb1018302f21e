"""Small receipts: a shop, a date, one to four goods with their prices, a total, and several questions about them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from PIL.Image import Image

from vl2.data.record import BoxPx
from vl2.synth import fonts, words
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.page import Page, ink_for, letter_boxes, line_height, make_paper, text_width
from vl2.synth.primer_lines import LEAST_PX, choose_face, choose_language
from vl2.synth.receipt import QUESTIONS, TITLES, money
from vl2.synth.source import Dropped, Source

LARGEST = (336, 336)  # px
Row = tuple[str, str]  # what stands left and right, or in the middle where there is no right
LEFT, RIGHT = 0, 1
Place = tuple[int, int]  # a row, and LEFT or RIGHT in it


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
class SmallReceipt(Source):
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
        image, places = _print(rows, face, rng)
        picture = distort(image, rng, rng.randint(0, self.max_distortions))
        draft = Draft(language=language, traits={"font": face.name, "goods": str(len(bill.prices))})
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        asked = set[str]()
        for _ in range(rng.randint(1, self.turns)):
            question, answer, seen = _ask(bill, self.pick_task(rng), language, rng)
            if question not in asked:
                asked.add(question)
                shown = [
                    draft.show(rows[row][side], [picture.move(box) for box in places[row][side]]) for row, side in seen
                ]
                draft.ask(question, answer, shown)
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


def _print(rows: list[Row], face: fonts.Face, rng: random.Random) -> tuple[Image, list[list[list[BoxPx]]]]:
    """Print the rows at a size at which they fit, as large as was wished for if it can be.

    Return with the picture, for each text of each row, the boxes of its letters.
    """
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
    places = []
    for number, (left, right) in enumerate(rows):
        y = margin + number * step
        if right:
            written = [
                page.write((margin, y), left, font, ink),
                page.write((size[0] - margin, y), right, font, ink, "ra"),
            ]
        else:
            written = [page.write((size[0] / 2, y), left, font, ink, "ma")]
        places.append([letter_boxes(font, text, box) for text, box in zip((left, right), written, strict=False)])
    rule = margin + (len(rows) - 1) * step - 2
    page.draw.line((margin, rule, size[0] - margin, rule), fill=ink)
    return page.image, places


def _ask(bill: Bill, task: str, language: str, rng: random.Random) -> tuple[str, str, list[Place]]:
    """Return a question, its answer, and the texts on which they rest."""
    question, rows = rng.choice(QUESTIONS[language][task]), bill.rows(language)
    if task == "price":
        at = rng.randrange(2, len(rows) - 1)
        return question.format(item=rows[at][LEFT]), rows[at][RIGHT], [(at, LEFT), (at, RIGHT)]
    if task == "read":
        seen = [(row, side) for row, texts in enumerate(rows) for side, text in enumerate(texts) if text]
        return question, "\n".join(f"{left} {right}".strip() for left, right in rows), seen
    row, side = {"shop": (0, LEFT), "date": (1, LEFT), "total": (len(rows) - 1, RIGHT)}[task]
    return question, rows[row][side], [(row, side)]
