"""Draw shop receipts with exact totals, and ask about their fields, items, locations or the whole text.

Amounts of money are whole cents.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from PIL import Image

from vl2.data import locate_phrases
from vl2.data.record import BoxPx
from vl2.synth import fonts, words
from vl2.synth.draft import Draft
from vl2.synth.handwriting import choose_hand, write_by_hand
from vl2.synth.page import Color, Page, ink_for, line_height, make_paper, text_width
from vl2.synth.photograph import take_picture
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source

TITLES = {
    "en": {"date": "Date", "no": "Receipt No", "sub": "Subtotal", "tax": "Tax", "total": "TOTAL", "cash": "Cash",
           "change": "Change", "thanks": "Thank you!"},
    "zh": {"date": "日期", "no": "单号", "sub": "小计", "tax": "税额", "total": "合计", "cash": "现金",
           "change": "找零", "thanks": "谢谢惠顾"},
}  # fmt: skip
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "total": ("What is the total amount?", "How much was paid in total?", "Give the total of this receipt."),
        "date": ("What is the date on the receipt?", "When was this receipt issued?"),
        "shop": ("Which shop issued this receipt?", "What is the name of the shop?"),
        "tax": ("How much tax is on the receipt?", "What is the tax amount?"),
        "change": ("How much change was given?", "What is the change?"),
        "price": ("How much does one {item} cost?", "What is the unit price of {item}?"),
        "amount": ("What is the amount for {item}?", "How much was paid for {item} altogether?"),
        "count": ("How many different items were bought?", "How many lines of items does the receipt have?"),
        "json": (
            "Extract shop, date, items, tax and total as JSON.",
            "Give the key fields of this receipt (shop, date, items, tax, total) as JSON.",
        ),
        "read": ("Transcribe this receipt.", "Read all the text on the receipt, line by line."),
    },
    "zh": {
        "total": ("合计金额是多少？", "这张小票一共多少钱？"),
        "date": ("小票上的日期是什么？", "这张小票是哪一天开的？"),
        "shop": ("这是哪家店的小票？", "商店的名字是什么？"),
        "tax": ("税额是多少？", "小票上的税是多少？"),
        "change": ("找零多少？", "找了多少钱？"),
        "price": ("{item}的单价是多少？", "一件{item}多少钱？"),
        "amount": ("{item}一共花了多少钱？", "{item}的金额是多少？"),
        "count": ("一共买了几种商品？", "小票上有几行商品？"),
        "json": (
            "请用JSON提取shop、date、items、tax和total。",
            "把小票的关键字段（shop、date、items、tax、total）写成JSON。",
        ),
        "read": ("请逐行抄录这张小票。", "读出小票上的全部文字。"),
    },
}
EXTRA: dict[str, dict[str, Any]] = {
    "en": {"phone": "Tel", "cashier": "Cashier", "titles": ("RECEIPT", "CASH BILL", "TAX INVOICE", "SALES SLIP"),
           "foot": ("Goods sold are not returnable.", "Please keep your receipt.", "Please come again!")},
    "zh": {"phone": "电话", "cashier": "收银员", "titles": ("购物小票", "销售单", "收款凭证"),
           "foot": ("商品售出概不退换。", "请保留小票。", "欢迎再次光临！")},
}  # fmt: skip
# Faces of fixed width, and narrow ones, which are close to those of tills.
_FIXED = re.compile(r"Mono|Courier|Typewriter|Code|Fixed|Narrow|Console")
MAX_NAME = {"en": 26, "zh": 14}  # characters of a product that fit on a line, as tills cut them
FIELDS = ("shop", "date", "total", "tax", "change")
# Labels for questions about locations. They name the values, because the boxes are those of the values, not titles.
LABELS = {
    "en": {"shop": "shop name", "date": "date of purchase", "total": "total amount", "tax": "tax amount",
           "change": "amount of change"},
    "zh": {"shop": "店名", "date": "购物日期", "total": "合计金额", "tax": "税额数值", "change": "找零金额"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReceiptItem:
    name: str
    count: int
    price_cents: int

    @property
    def amount_cents(self) -> int:
        return self.count * self.price_cents


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """The content of a receipt."""

    shop: str
    date: str
    number: str
    address: str
    items: tuple[ReceiptItem, ...]
    tax_percent: int
    cash_cents: int

    @property
    def subtotal_cents(self) -> int:
        return sum(item.amount_cents for item in self.items)

    @property
    def tax_cents(self) -> int:
        return (self.subtotal_cents * self.tax_percent + 50) // 100  # half a cent rounds up

    @property
    def total_cents(self) -> int:
        return self.subtotal_cents + self.tax_cents

    @property
    def change_cents(self) -> int:
        return self.cash_cents - self.total_cents


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def make_purchase(rng: random.Random, language: str, goods: str | None = None) -> Purchase:
    """Return a random purchase. `goods` is a text file with a name of a product per line; None is the built-in ones."""
    known = words.read_passages(goods) if goods else words.GOODS[language]
    sampled = rng.sample(known, min(len(known), rng.randint(2, 8)))
    is_upper = rng.random() < 0.35
    chosen = dict.fromkeys(name[: MAX_NAME[language]].strip() for name in sampled)
    items = tuple(
        ReceiptItem(name=good, count=rng.choice((1, 1, 1, 2, 3)), price_cents=rng.randint(40, 2999)) for good in chosen
    )
    date, number = words.date(rng, language), f"{rng.randint(1, 999999):06d}"
    bought = Purchase(
        shop=rng.choice(words.SHOPS[language]), date=date, number=number, address=words.address(rng, language),
        items=items, tax_percent=rng.choice((5, 6, 8, 10, 19)), cash_cents=0,
    )  # fmt: skip
    note = rng.choice((100, 500, 1000, 2000))
    cash = -(-bought.total_cents // note) * note
    bought = replace(bought, cash_cents=cash)
    if not is_upper:
        return bought
    # Many tills print capital letters only.
    named = tuple(replace(item, name=item.name.upper()) for item in items)
    return replace(bought, shop=bought.shop.upper(), address=bought.address.upper(), items=named)


def field_values(purchase: Purchase) -> dict[str, str]:
    """Return the printed text of each field in FIELDS."""
    return {
        "shop": purchase.shop,
        "date": purchase.date,
        "total": money(purchase.total_cents),
        "tax": money(purchase.tax_cents),
        "change": money(purchase.change_cents),
    }


def as_json(purchase: Purchase) -> str:
    values = field_values(purchase)
    items = [{"name": i.name, "count": i.count, "amount": money(i.amount_cents)} for i in purchase.items]
    fields = {"shop": values["shop"], "date": values["date"], "items": items, "tax": values["tax"]}
    return json.dumps({**fields, "total": values["total"]}, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A row of a receipt with a left and a right text. If the right text is empty, the left one is centered."""

    left: str
    right: str = ""
    field: str = ""
    is_ruled: bool = False  # a line is drawn above the row
    is_left: bool = False  # a left text alone stays on the left


def rows_of(purchase: Purchase, language: str, rng: random.Random) -> list[Printed]:
    """Return the printed rows: shop, number and date, items on one or two lines each, amounts, and a foot."""
    t, extra = TITLES[language], EXTRA[language]
    rows = [Printed(left=purchase.shop, field="shop"), Printed(left=purchase.address)]
    if rng.random() < 0.5:
        rows.append(Printed(left=f"{extra['phone']} {words.phone(rng)}"))
    if rng.random() < 0.4:
        rows.append(Printed(left=rng.choice(extra["titles"])))
    rows += [
        Printed(left=t["no"], right=purchase.number, is_ruled=True),
        Printed(left=t["date"], right=purchase.date, field="date"),
    ]
    if rng.random() < 0.4:
        rows.append(Printed(left=extra["cashier"], right=words.name(rng, language)))
    on_two_lines = rng.random() < 0.4
    for number, item in enumerate(purchase.items):
        counted, amount = f"{item.count} x {money(item.price_cents)}", money(item.amount_cents)
        ruled = number == 0 and on_two_lines
        if on_two_lines:
            rows += [Printed(left=item.name, is_left=True, is_ruled=ruled), Printed(left=f"  {counted}", right=amount)]
        else:
            rows.append(Printed(left=f"{item.count} x {item.name} @ {money(item.price_cents)}", right=amount))
    rows += [
        Printed(left=t["sub"], right=money(purchase.subtotal_cents), is_ruled=True),
        Printed(left=f"{t['tax']} {purchase.tax_percent}%", right=money(purchase.tax_cents), field="tax"),
        Printed(left=t["total"], right=money(purchase.total_cents), field="total"),
        Printed(left=t["cash"], right=money(purchase.cash_cents)),
        Printed(left=t["change"], right=money(purchase.change_cents), field="change"),
        Printed(left=t["thanks"], is_ruled=rng.random() < 0.3),
    ]
    if rng.random() < 0.4:
        rows.append(Printed(left=rng.choice(extra["foot"])))
    return rows


@dataclass(frozen=True, kw_only=True)
class Receipt(Source):
    """Receipts with questions on fields, key fields as JSON, transcripts, and where a field is."""

    name = "receipt"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("field", "item", "json", "read", "locate")

    goods_en: str | None = None  # a text file with the name of a product per line; None uses the built-in names
    goods_zh: str | None = None
    font_folders: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ("en", "zh")
    max_distortions: int = 3
    photographed: float = 0.3

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.goods_en or self.goods_zh else super().own_licence()

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice([lang for lang in self.languages if lang in fonts.languages(self.font_folders)] or ["en"])
        task = self.pick_task(rng)
        purchase = make_purchase(rng, language, self.goods_zh if language == "zh" else self.goods_en)
        rows = rows_of(purchase, language, rng)
        face = _choose_face(rng, "".join(row.left + row.right for row in rows), self.font_folders)
        if face is None:
            raise Dropped("no font covers the text")
        page, boxes = _print(rows, fonts.load(face, rng.randint(14, 22)), rng)
        # The total written by hand is a second place of it, and not part of a transcription.
        if task not in ("read", "locate") and rng.random() < 0.2:
            page = _note_total(page, purchase, rng)
        picture = take_picture(page.image, rng, max_distortions=self.max_distortions, photographed=self.photographed)
        draft = Draft(
            language=language, traits={"task": task, "font": face.name, "distortion": "+".join(picture.names)}
        )
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        moved = {name: picture.move(box) for name, box in boxes.items()}
        _ask(draft, task, purchase, rows, moved, rng)
        return draft


def _choose_face(rng: random.Random, text: str, folders: tuple[str, ...] | None) -> fonts.Face | None:
    """Return a face that covers the text: in most cases one of fixed width, as tills print."""
    fixed = [face for face in fonts.faces_for(text, folders) if _FIXED.search(face.name)]
    return rng.choice(fixed) if fixed and rng.random() < 0.6 else fonts.choose_face(rng, text, folders)


def _print(rows: list[Printed], font: fonts.Font, rng: random.Random) -> tuple[Page, dict[str, BoxPx]]:
    """Draw the rows of a receipt, and return the page with the boxes of the fields' values."""
    margin, step = rng.randint(12, 28), round(line_height(font) * rng.uniform(1.05, 1.4))
    inner = max(text_width(font, row.left) + text_width(font, row.right) + 28 for row in rows)
    has_code, gap = rng.random() < 0.25, step * 2 // 3
    ruled = sum(row.is_ruled for row in rows)
    height = step * (len(rows) + 1) + gap * ruled + 2 * margin + (3 * step if has_code else 0)
    width, kind = inner + 2 * margin, rng.choice(("white", "white", "plain", "noise", "gradient", "folded"))
    page = Page(make_paper(kind, (width, height), rng))
    ink = ink_for(kind, rng) if rng.random() < 0.2 else (level := rng.randint(10, 90), level, level)
    rule = rng.choice(("line", "dashes", "stars", "none"))
    boxes: dict[str, BoxPx] = {}
    y = margin
    for row in rows:
        if row.is_ruled:
            _rule(page, rule, (margin, y, width - margin, y + gap), font, ink)
            y += gap
        if row.right:
            page.write((margin, y), row.left, font, ink)
            box = page.write((width - margin, y), row.right, font, ink, "ra")
        elif row.is_left:
            box = page.write((margin, y), row.left, font, ink)
        else:
            box = page.write((width / 2, y), row.left, font, ink, "ma")
        if row.field:
            boxes[row.field] = box
        y += step
    if has_code:
        _bars(page, (margin + inner // 6, y + step // 2, width - margin - inner // 6, y + 5 * step // 2), rng, ink)
    return page, boxes


def _rule(page: Page, kind: str, box: tuple[int, int, int, int], font: fonts.Font, ink: Color) -> None:
    x0, y0, x1, y1 = box
    middle = (y0 + y1) // 2
    if kind == "line":
        page.draw.line((x0, middle, x1, middle), fill=ink)
    elif kind == "dashes":
        for x in range(x0, x1, 9):
            page.draw.line((x, middle, min(x + 5, x1), middle), fill=ink)
    elif kind == "stars":
        count = max(1, int((x1 - x0) / font.getlength("*")))
        page.write((x0, middle), "*" * count, font, ink, "lm")


def _bars(page: Page, box: tuple[int, int, int, int], rng: random.Random, ink: Color) -> None:
    """Draw the bars of a bar code."""
    x, y0, right, y1 = box
    while x < right - 4:
        wide = rng.choice((1, 1, 2, 3))
        page.draw.rectangle((x, y0, x + wide - 1, y1), fill=ink)
        x += wide + rng.choice((1, 1, 2, 3))


def _note_total(page: Page, purchase: Purchase, rng: random.Random) -> Page:
    """Write the total by hand below the receipt, in a circle, as someone does who claims expenses."""
    text = money(purchase.total_cents)
    face = choose_hand(rng, text, None)
    assert face is not None, "the built-in font has digits"
    font = fonts.load(face, rng.randint(26, 36))
    width, height = page.image.size
    room = 2 * line_height(font)
    longer = Image.new("RGB", (width, height + room), page.image.getpixel((1, height - 2)))
    longer.paste(page.image, (0, 0))
    noted = Page(longer)
    x = rng.uniform(0.1, max(0.11, 0.8 - font.getlength(text) / width)) * width
    x0, y0, x1, y1 = write_by_hand(noted, (x, height + room / 6), text, font, (30, 30, 40), rng)
    around = (x0 - 14, y0 - 10, x1 + 14, min(height + room - 2, y1 + 12))
    noted.draw.ellipse(around, outline=(30, 30, 40), width=2)
    return noted


def _ask(
    draft: Draft,
    task: str,
    purchase: Purchase,
    rows: list[Printed],
    boxes: dict[str, BoxPx],
    rng: random.Random,
) -> None:
    questions, values = QUESTIONS[draft.language], field_values(purchase)
    if task == "field":
        for name in rng.sample(FIELDS, rng.randint(1, 3)):
            draft.ask(rng.choice(questions[name]), values[name])
    elif task == "item":
        item = rng.choice(purchase.items)
        kind = rng.choice(("price", "amount", "count"))
        answers = {
            "price": money(item.price_cents),
            "amount": money(item.amount_cents),
            "count": str(len(purchase.items)),
        }
        draft.ask(rng.choice(questions[kind]).format(item=item.name), answers[kind])
    elif task == "json":
        draft.ask(rng.choice(questions["json"]), as_json(purchase))
    elif task == "read":
        draft.ask(rng.choice(questions["read"]), "\n".join(f"{row.left} {row.right}".strip() for row in rows))
    else:
        name = rng.choice(FIELDS)
        label = LABELS[draft.language][name]
        draft.category = "grounding"
        draft.ask(locate_phrases.locate(rng, draft.language, label), draft.box(label, [boxes[name]]))
