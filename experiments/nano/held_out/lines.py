"""Lines to be read: short and long ones of English, several below each other, and Chinese ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

from PIL import Image, ImageDraw, ImageFont

from experiments.nano.held_out import fonts
from experiments.nano.held_out.word_lists import ADJECTIVES, NOUNS, VERBS, WORDS_ZH, made_up_name

SHORT, LONG = (3, 24), (25, 60)  # letters of a line, blanks with them
# Mostly plain words, as English lines are; one in five holds a made-up name or a rarer sign.
SHORT_EN = (
    "{N}", "{A} {n}", "the {a} {n}", "{v} the {n}", "{n} and {n}", "{N} {number}", "{n} of the {n}", "{n} or {n}?",
    "{N}, {n}", "{CAPS}", "{A} {n}, {clock}", "our {a} {n}", "{n}-{n}", "a {n} in the {n}", "{number} {n} boxes",
    "not a {n}", "{N}: {price}", "{name} {n}", "{name} & {name}", "No {n} here!",
)  # fmt: skip
LONG_EN = (
    "The {a} {n} and the {n} {v} each other",
    "Each {a} {n} from the {n} costs {price}",
    "Please {v} your {n} before {clock} at the {n}",
    "{number} {n} boxes went to the {a} {n}",
    "A {a} {n} has no {n} and no {n}",
    "{A} {n}, {a} {n} and a {a} {n}",
    "who would {v} a {a} {n} for a {n}?",
    "It took {number} days to {v} the {n}",
    "in the {n} there is a {a} {n} of {n}",
    "{name} and {name} {v} the {a} {n}.",
    '"{v} that {n}!" said the {a} {n}',
)
SHORT_ZH = (
    "{w}{w}", "{w}与{w}", "{w}的{w}", "{w}、{w}", "{w}第{n}{m}", "{w}{n}号", "{w}在{w}旁边", "把{w}带到{w}",
    "{w}比{w}更贵", "{w}：{n}元", "谁见过{w}？", "{w}里没有{w}", "今天去看{w}", "{n}月{n}日{w}",
)  # fmt: skip
PAPERS = (
    ((255, 255, 255), (15, 15, 15)), ((252, 246, 232), (60, 40, 30)), ((228, 238, 247), (20, 40, 90)),
    ((30, 42, 48), (240, 240, 235)), ((70, 20, 40), (255, 235, 220)), ((255, 238, 110), (25, 25, 25)),
    ((224, 232, 214), (15, 70, 45)),
)  # fmt: skip


def _of_length(rng: Random, make: Callable[[Random], str], shortest: int, longest: int) -> str:
    while True:
        text = make(rng)
        if shortest <= len(text) <= longest:
            return text


def _fill_en(templates: Sequence[str]) -> Callable[[Random], str]:
    def make(rng: Random) -> str:
        text = rng.choice(templates)
        while "{" in text:
            start, end = text.index("{"), text.index("}")
            text = text[:start] + _word_en(rng, text[start + 1 : end]) + text[end + 1 :]
        return text

    return make


def _word_en(rng: Random, slot: str) -> str:
    match slot:
        case "n":
            return rng.choice(NOUNS)
        case "N":
            return rng.choice(NOUNS).capitalize()
        case "a":
            return rng.choice(ADJECTIVES)
        case "A":
            return rng.choice(ADJECTIVES).capitalize()
        case "v":
            return rng.choice(VERBS)
        case "name":
            return made_up_name(rng)
        case "number":
            return str(rng.choice((rng.randint(2, 99), rng.randint(100, 9999))))
        case "price":
            return f"{rng.choice('$$$£€')}{rng.randint(0, 120)}.{rng.randint(0, 99):02d}"
        case "clock":
            return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}"
    assert slot == "CAPS", slot
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}".upper()


def is_plain(text: str) -> bool:
    """Tell whether a line holds words of the lists, numbers and common marks alone."""
    words = re.findall(r"[a-z]+", text.casefold())
    return not re.search(r"[$€£&!\"]", text) and all(word in _PLAIN for word in words)


_PLAIN = {
    *NOUNS,
    *ADJECTIVES,
    *VERBS,
    *re.findall("[a-z]+", re.sub(r"{.*?}", "", " ".join(SHORT_EN + LONG_EN)).casefold()),
}


def short_line(rng: Random) -> str:
    return _of_length(rng, _fill_en(SHORT_EN), *SHORT)


def long_line(rng: Random) -> str:
    return _of_length(rng, _fill_en(LONG_EN), *LONG)


def chinese_line(rng: Random) -> str:
    text = rng.choice(SHORT_ZH)
    while "{" in text:
        start, end = text.index("{"), text.index("}")
        slot = text[start + 1 : end]
        word = (
            rng.choice(WORDS_ZH) if slot == "w" else rng.choice("页章课期") if slot == "m" else str(rng.randint(1, 31))
        )
        text = text[:start] + word + text[end + 1 :]
    return text


def draw_lines(rng: Random, texts: Sequence[str], font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw lines on paper of one color, with margins, now and then a rule or a frame, and turned by up to 2 degrees."""
    paper, ink = rng.choice(PAPERS)
    ascent, descent = font.getmetrics()
    step = round((ascent + descent) * rng.uniform(1.05, 1.5))
    margins = [rng.randint(7, 30) for _ in range(4)]
    width = round(max(font.getlength(text) for text in texts)) + margins[0] + margins[2]
    height = step * (len(texts) - 1) + ascent + descent + margins[1] + margins[3]
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    decoration = rng.choice(("none", "none", "rule", "frame"))
    if decoration == "frame":
        draw.rectangle((2, 2, width - 3, height - 3), outline=ink)
    for number, text in enumerate(texts):
        x, y = margins[0], margins[1] + number * step
        draw.text((x, y), text, fill=ink, font=font)
        if decoration == "rule":
            draw.line((x, y + ascent + descent + 1, width - margins[2], y + ascent + descent + 1), fill=ink)
    if rng.random() < 0.3:
        image = image.rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    return image


def short_picture(rng: Random, kept: fonts.Fonts) -> tuple[Image.Image, str]:
    text = short_line(rng)
    return draw_lines(rng, [text], fonts.load(kept.choose(rng, "en"), rng.randint(15, 45))), text


def long_picture(rng: Random, kept: fonts.Fonts) -> tuple[Image.Image, str]:
    text = long_line(rng)
    return draw_lines(rng, [text], fonts.load(kept.choose(rng, "en"), rng.randint(15, 29))), text


def several_picture(rng: Random, kept: fonts.Fonts) -> tuple[Image.Image, tuple[str, ...]]:
    texts = tuple(_of_length(rng, _fill_en(SHORT_EN + LONG_EN), SHORT[0], 40) for _ in range(rng.randint(2, 4)))
    return draw_lines(rng, texts, fonts.load(kept.choose(rng, "en"), rng.randint(15, 31))), texts


def chinese_picture(rng: Random, kept: fonts.Fonts) -> tuple[Image.Image, str]:
    text = chinese_line(rng)
    return draw_lines(rng, [text], fonts.load(kept.choose(rng, "zh"), rng.randint(17, 45))), text
