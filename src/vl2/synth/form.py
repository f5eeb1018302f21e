"""Draw filled-in forms, typed or written by hand, with ticked boxes and stamps, and ask about their fields."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import ClassVar

from vl2.data import locate_phrases
from vl2.data.record import BoxPx
from vl2.synth import fonts, words
from vl2.synth.draft import Draft
from vl2.synth.handwriting import choose_hand, write_by_hand
from vl2.synth.page import Color, Page, ink_for, line_height, make_paper, text_width
from vl2.synth.photograph import take_picture
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source
from vl2.synth.stamp import Stamp, draw_stamp, press
from vl2.synth.text_image import cut

HEADS = {
    "en": ("Registration Form", "Membership Application", "Visitor Card", "Repair Order", "Library Card Request"),
    "zh": ("登记表", "会员申请表", "访客登记卡", "维修单", "借书证申请表"),
}
FIELDS = {
    "en": ("Name", "Date", "City", "Address", "Phone", "Number", "Signed by"),
    "zh": ("姓名", "日期", "城市", "地址", "电话", "编号", "签字人"),
}
CHOICES = {
    "en": {
        "Payment": ("Cash", "Card", "Transfer"),
        "Delivery": ("Post", "Courier", "Pick up"),
        "Language": ("English", "Chinese", "Spanish"),
    },
    "zh": {
        "付款方式": ("现金", "刷卡", "转账"),
        "取货方式": ("邮寄", "快递", "自取"),
        "语言": ("英语", "汉语", "西班牙语"),
    },
}
REMARK = {"en": "Remarks", "zh": "备注"}
REMARK_CHARS = {"en": 34, "zh": 14}
ASK_STAMP = {
    "en": ("What does the stamp say?", "Read the stamp on the form."),
    "zh": ("印章上写的是什么？", "请读出表上的印章。"),
}
STAMP_LABEL = {"en": "the stamp", "zh": "印章"}
ASK_VALUE = {
    "en": ('What is entered for "{field}"?', "What is the value of the field {field}?", "Read the field {field}."),
    "zh": ("“{field}”一栏填的是什么？", "表中的{field}是什么？", "请读出{field}一栏。"),
}
ASK_CHOICE = {
    "en": ("Which option is ticked for {field}?", "What was chosen for {field}?"),
    "zh": ("{field}勾选了哪一项？", "{field}选的是什么？"),
}
ASK_ALL = {
    "en": ("Extract all fields as JSON.", "Turn this form into JSON."),
    "zh": ("请把表中所有字段写成JSON。", "用JSON提取这张表的内容。"),
}


@dataclass(frozen=True, kw_only=True)
class Filled:
    """The content of a form: its heading, and the values and choices by the titles of their fields."""

    head: str
    values: dict[str, str]
    choices: dict[str, str]


@dataclass
class _Places:
    """Boxes of the values on the page, by the title of the field, and of the stamp."""

    values: dict[str, BoxPx] = field(default_factory=dict)
    stamp: BoxPx | None = None


def fill_in(rng: random.Random, language: str, texts: str | None = None) -> Filled:
    """Fill in a random form. With `texts`, a text file or a corpus, it has a remark from there."""
    makers = (
        lambda: words.name(rng, language),
        lambda: words.date(rng, language),
        lambda: rng.choice(words.CITIES[language]),
        lambda: words.address(rng, language),
        lambda: words.phone(rng),
        lambda: f"{rng.choice('ABCDEFG')}-{rng.randint(1000, 9999)}",
        lambda: words.name(rng, language),
    )
    titles = FIELDS[language]
    kept = sorted(rng.sample(range(len(titles)), rng.randint(3, len(titles))))
    asked = rng.sample(sorted(CHOICES[language]), rng.randint(0, 2))
    values = {titles[i]: makers[i]() for i in kept}
    if texts is not None:
        values[REMARK[language]] = cut(
            rng, words.choose_passage(rng, language, texts), language, REMARK_CHARS[language]
        )
    return Filled(
        head=rng.choice(HEADS[language]),
        values=values,
        choices={title: rng.choice(CHOICES[language][title]) for title in asked},
    )


@dataclass(frozen=True, kw_only=True)
class Form(Source):
    """Forms with questions on their fields, all fields as JSON, where a field is, and what a stamp says."""

    name = "form"
    category = "document"
    tasks_known: ClassVar[tuple[str, ...]] = ("fields", "json", "locate", "stamp")

    texts_en: str | None = None  # a text file with a passage per line, or a corpus: remarks are from there
    texts_zh: str | None = None
    font_folders: tuple[str, ...] | None = None
    hand_folders: tuple[str, ...] | None = None  # folders of handwriting fonts; None uses those of the system
    languages: tuple[str, ...] = ("en", "zh")
    max_distortions: int = 2
    handwritten: float = 0.6  # share of the forms that are filled in by hand
    photographed: float = 0.3
    stamped: float = 0.3

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.texts_en or self.texts_zh else super().own_licence()

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice([lang for lang in self.languages if lang in fonts.languages(self.font_folders)] or ["en"])
        task = self.pick_task(rng)
        filled = fill_in(rng, language, self.texts_zh if language == "zh" else self.texts_en)
        text = "".join((filled.head, *filled.values, *filled.values.values(), *filled.choices))
        options = "".join("".join(CHOICES[language][title]) for title in filled.choices)
        by_hand = rng.random() < self.handwritten
        printed = fonts.choose_face(rng, text + options, self.font_folders)
        written = choose_hand(rng, text + options, self.hand_folders) if by_hand else None
        if written is None:  # few handwriting fonts have traditional or rare characters
            by_hand, written = False, fonts.choose_face(rng, text + options, self.font_folders)
        if printed is None or written is None:
            raise Dropped("no font covers the text")
        stamp = draw_stamp(rng, language, self.font_folders) if task == "stamp" or rng.random() < self.stamped else None
        if stamp is None and task == "stamp":
            raise Dropped("no font covers the stamp")
        size_px = rng.randint(15, 22)
        pen = fonts.load(written, size_px + 5 * by_hand)  # letters of handwriting fonts are small
        page, places = _draw(filled, language, fonts.load(printed, size_px), pen, rng, by_hand=by_hand, stamp=stamp)
        picture = take_picture(page.image, rng, max_distortions=self.max_distortions, photographed=self.photographed)
        traits = {"task": task, "font": printed.name, "pen": written.name, "distortion": "+".join(picture.names)}
        draft = Draft(language=language, traits=traits)
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        moved = {title: picture.move(box) for title, box in places.values.items()}
        if task == "stamp":
            assert stamp is not None
            assert places.stamp is not None
            _ask_stamp(draft, stamp, picture.move(places.stamp), rng)
        else:
            _ask(draft, task, filled, moved, rng)
        return draft


def _draw(
    filled: Filled,
    language: str,
    printed: fonts.Font,
    written: fonts.Font,
    rng: random.Random,
    *,
    by_hand: bool,
    stamp: Stamp | None,
) -> tuple[Page, _Places]:
    step = round(max(line_height(printed), line_height(written)) * 1.7)
    margin, indent = rng.randint(20, 40), max(text_width(printed, t) for t in (*filled.values, *filled.choices)) + 24
    options = [sum(text_width(printed, o) + 2 * step for o in CHOICES[language][title]) for title in filled.choices]
    values = [round(text_width(written, value) * (1.08 if by_hand else 1)) for value in filled.values.values()]
    inner = max(indent + max([*options, *values]) + 16, text_width(printed, filled.head) + 40, 320)
    height = step * (len(filled.values) + len(filled.choices) + 2) + 2 * margin
    body, width = height, inner + 2 * margin
    if stamp is not None:  # it may cover the last line, but not all of it
        height, width = height + stamp.mask.height - step, max(width, stamp.mask.width + 4)
    size = (width, height)
    kind = rng.choice(("white", "plain", "noise", "gradient", "folded"))
    page, ink, places = Page(make_paper(kind, size, rng)), ink_for(kind, rng), _Places()
    pen = rng.choice(((20, 40, 140), (10, 10, 10), (120, 20, 30)))
    page.write((size[0] / 2, margin), filled.head, printed, ink, "ma")
    y, right, framed = margin + 2 * step, size[0] - margin, rng.random() < 0.5
    for title, value in filled.values.items():
        page.write((margin, y), title, printed, ink)
        at = (margin + indent, y)
        places.values[title] = (
            write_by_hand(page, (at[0], at[1] - 2), value, written, pen, rng)
            if by_hand
            else page.write(at, value, written, pen)
        )
        _rule(page, (margin + indent - 8, y - step // 5, right, y + step * 7 // 10), ink, framed=framed)
        y += step
    for title, chosen in filled.choices.items():
        page.write((margin, y), title, printed, ink)
        places.values[title] = _tick(page, (margin + indent, y), CHOICES[language][title], chosen, printed, (ink, pen))
        y += step
    if stamp is not None:
        area = (size[0] / 3 if stamp.mask.width < size[0] * 2 / 3 else 0, body - step * 1.5, size[0], size[1])
        places.stamp = press(page.image, stamp, rng, area)
    return page, places


def _rule(page: Page, box: tuple[int, int, int, int], ink: Color, *, framed: bool) -> None:
    if framed:
        page.draw.rectangle(box, outline=ink)
    else:
        page.draw.line((box[0], box[3], box[2], box[3]), fill=ink)


def _tick(
    page: Page,
    at: tuple[int, int],
    options: tuple[str, ...],
    chosen: str,
    font: fonts.Font,
    inks: tuple[Color, Color],
) -> BoxPx:
    """Draw the options with their check boxes, tick the chosen one, and return the box of its text."""
    (x, y), side = at, line_height(font) * 7 // 10
    place: BoxPx = (0, 0, 0, 0)
    for option in options:
        top = y + line_height(font) // 6
        page.draw.rectangle((x, top, x + side, top + side), outline=inks[0], width=1)
        box = page.write((x + side + 8, y), option, font, inks[0])
        if option == chosen:
            place = box
            page.draw.line(
                [(x + 2, top + side // 2), (x + side // 2, top + side - 2), (x + side + 3, top - 3)],
                fill=inks[1],
                width=3,
            )
        x += side + text_width(font, option) + side * 2
    return place


def _ask(draft: Draft, task: str, filled: Filled, boxes: dict[str, BoxPx], rng: random.Random) -> None:
    lang = draft.language
    if task == "json":
        draft.ask(rng.choice(ASK_ALL[lang]), json.dumps({**filled.values, **filled.choices}, ensure_ascii=False))
    elif task == "locate":
        title = rng.choice(sorted(filled.values))
        draft.category = "grounding"
        draft.ask(
            locate_phrases.locate(rng, lang, filled.values[title]),
            draft.box(filled.values[title], _same(filled, boxes, title)),
        )
    else:
        for title in rng.sample([*filled.values, *filled.choices], rng.randint(1, 3)):
            ask, value = (ASK_VALUE, filled.values) if title in filled.values else (ASK_CHOICE, filled.choices)
            draft.ask(rng.choice(ask[lang]).format(field=title), value[title])


def _ask_stamp(draft: Draft, stamp: Stamp, box: BoxPx, rng: random.Random) -> None:
    if rng.random() < 0.6:
        draft.ask(rng.choice(ASK_STAMP[draft.language]), stamp.text)
    else:
        label = STAMP_LABEL[draft.language]
        draft.category = "grounding"
        draft.ask(locate_phrases.locate(rng, draft.language, label), draft.box(label, [box]))


def _same(filled: Filled, boxes: dict[str, BoxPx], title: str) -> list[BoxPx]:
    """Return the boxes of all fields with the same value as `title`, because two names may be equal."""
    return [boxes[other] for other, value in filled.values.items() if value == filled.values[title]]
