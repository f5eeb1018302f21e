"""Lines of text: one of up to sixty letters, or two to four, in a picture that fits them or has room around.

English lines are words as they follow one another in the texts, broken where a word is kept back. A third of the
Chinese ones are characters at random, rare ones as often as frequent ones: of the rare ones texts have too few. Another
third are frequent words, since an encyclopedia never says "who" or "you". Many lines have signs put in, which it hardly
has either.
"""

from __future__ import annotations

import math
import random
import re
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from experiments.nano.draw.base import NanoSource, Written
from experiments.nano.draw.frame import LEAST_PX, MOST_PX, is_wanted, scale_of
from experiments.nano.draw.held_out import has_held_out_word
from experiments.nano.draw.phrasing import phrase
from experiments.nano.draw.signs import with_signs
from experiments.nano.draw.vocabulary import read_words, word
from vl2.data.locate_phrases import locate
from vl2.synth import fonts
from vl2.synth.draft import Draft
from vl2.synth.page import choose_paper, ink_for, line_height, make_paper, text_width
from vl2.synth.primer_lines import token
from vl2.synth.source import Dropped
from vl2.synth.words import read_characters, read_passages

LENGTHS_EN = ((1, 12), (8, 24), (25, 40), (41, 60))  # letters of a line, with their shares
SHARES_EN = (20, 36, 26, 18)
LONGEST = LENGTHS_EN[-1][1]
LENGTHS_ZH = (10, 18)
LEAST_SEEN_PX, MOST_SEEN_PX = 9.5, 150  # of letters, as the processor scales them
LEAST_OFTEN = 4  # times that texts must have a character for it to be written at random
TOKEN_SHARE, WORDS_SHARE = 0.15, 0.12  # of English texts: prices, codes and single characters; words without sense
SIGNS_SHARE = {"en": 0.45, "zh": 0.35}
PLAIN_SHARE = 0.4  # of pictures with several lines: those about which is asked as if there were one
# Faces whose "a" is a circle with a stroke. One family in five has it, and without more of them it is read as "o".
ROUND_A = re.compile(
    r"ABeeZee|Andika|Architects Daughter|Be Vietnam Pro|Comic (Neue|Relief)|Coming Soon|Delius|Didact Gothic|Fredoka|"
    r"Josefin Sans|Kalam|League Spartan|Lexend|Mali|Mulish|Outfit|Patrick Hand|Poppins|Questrial|Quicksand|"
    r"Short Stack|Sniglet|Space Mono|Sriracha|Syne Mono|URW Gothic|Urbanist"
)
ROUND_SHARE = 0.3
CHARACTERS = string.ascii_uppercase * 2 + string.ascii_lowercase + string.digits * 3 + "%#&*+$"
ATTEMPTS = 40


@dataclass(frozen=True, kw_only=True)
class Lines(NanoSource):
    """Tasks "line" (one and nothing else) and "lines" (two to four)."""

    name = "nano_lines"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("line", "lines")

    even_share: float = 0.33  # of Chinese texts: characters at random
    common_share: float = 0.33  # of Chinese texts: frequent words at random

    def page(self, rng: random.Random) -> Written:
        return self._write(rng, rng.choice(self.languages), rng.choice((1, 1, 2, 3, 4)))[1]

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice(self.languages)
        count = 1 if self.pick_task(rng) == "line" else rng.randint(2, 4)
        texts, written = self._write(rng, language, count)
        draft = Draft(language=language, traits={"lines": str(count)})
        written.picture(draft, rng)
        shown = written.show(draft, range(count))
        if count == 1:
            draft.ask(phrase("read", language, rng), texts[0], shown)
        else:
            question = phrase("read" if rng.random() < PLAIN_SHARE else "read_lines", language, rng)
            draft.ask(question, "\n".join(texts), shown)
            for at in rng.sample(range(count), rng.randint(0, 2)):
                draft.ask(phrase("read_nth", language, rng, n=str(at + 1)), texts[at], [shown[at]])
        if rng.random() < 0.15:
            draft.ask(locate(rng, language, texts[0]), draft.box(texts[0], [written.whole(0)]))
        return draft

    def _write(self, rng: random.Random, language: str, count: int) -> tuple[list[str], Written]:
        """Write lines in a picture of their own; the key of each is its number."""
        low, high = rng.choices(LENGTHS_EN, SHARES_EN)[0] if language == "en" else (1, rng.choice(LENGTHS_ZH))
        texts = [self.text(rng, language, low, high) for _ in range(count)]
        face = self._line_face(rng, "".join(texts))
        for _ in range(ATTEMPTS):
            font = fonts.load(face, round(math.exp(rng.uniform(math.log(10), math.log(46)))))
            size, place = _place(rng, texts, font)
            is_read = LEAST_SEEN_PX <= font.size * scale_of(size) <= MOST_SEEN_PX
            if min(size) >= LEAST_PX // 3 and max(size) <= MOST_PX and is_read and is_wanted(rng, size):
                break
        else:
            raise Dropped("the lines fit no picture")
        kind = choose_paper(rng)
        written, ink = Written(make_paper(kind, size, rng)), ink_for(kind, rng)
        step = line_height(font) * rng.uniform(1.0, 1.3)
        for n, text in enumerate(texts):
            written.write(n, (place[0], place[1] + n * step), text, font, ink)
        return texts, written

    def _line_face(self, rng: random.Random, text: str) -> fonts.Face:
        """Return a face that can draw a text, often one with a round "a"."""
        if rng.random() < ROUND_SHARE:
            faces = [face for face in fonts.find_faces(self.font_folders) if ROUND_A.search(face.name)]
            fitting = [face for face in faces if fonts.covers(face, text)]
            if fitting:
                return rng.choice(fitting)
        return self.face(rng, text)

    def text(self, rng: random.Random, language: str, low: int, high: int) -> str:
        """Return a line of `low` to `high` letters, a few more or less where signs are put in."""
        text = self._words(rng, language, low, high)
        if rng.random() < SIGNS_SHARE[language]:
            signed = with_signs(rng, text, language)
            return signed if len(signed) <= max(high, LONGEST) else text
        return text

    def _words(self, rng: random.Random, language: str, low: int, high: int) -> str:
        if language == "zh":
            return self._chinese(rng, high)
        kind = rng.random()
        if kind < TOKEN_SHARE and low < 12:
            return token(rng) if rng.random() < 0.65 else _few_characters(rng)
        if kind < TOKEN_SHARE + WORDS_SHARE:
            return _joined([word(rng, self.inputs, "en") for _ in range(8)], low, high, rng)
        passages = read_passages(str(Path(self.inputs) / "text/en.txt"))
        for _ in range(ATTEMPTS):
            pieces = rng.choice(passages).split(" ")
            start = rng.randrange(len(pieces))
            taken = list[str]()
            for piece in pieces[start : start + 16]:
                if has_held_out_word(piece):
                    break
                taken.append(piece)
            text = _joined(taken, low, high, rng)
            if low <= len(text) <= high:
                return text.upper() if rng.random() < 0.1 else text
        raise Dropped("no text is as long as wished")

    def _chinese(self, rng: random.Random, limit: int) -> str:
        path = str(Path(self.inputs) / "text/zh.txt")
        kind = rng.random()
        if kind < self.even_share:
            known = _characters(path)
            return "".join(rng.choice(known) for _ in range(rng.randint(2, limit)))
        kind -= self.even_share
        if kind < self.common_share:
            words = read_words(str(Path(self.inputs) / "words/common_zh.txt"))
            # As often as one over the root of its rank: between how often texts have a word, and all alike.
            picked = "".join(words[int(len(words) * rng.random() ** 2)] for _ in range(limit))
            return picked[: rng.randint(2, limit)]
        kind -= self.common_share
        if kind < 0.07:
            return "".join(word(rng, self.inputs, "zh") for _ in range(3))[:limit]
        if kind < 0.11:
            return token(rng)
        passage = rng.choice(read_passages(path))
        start = rng.randrange(max(1, len(passage) - 1))
        return passage[start : start + rng.randint(1, limit)].strip("，。、；： ") or passage[:limit]


def _few_characters(rng: random.Random) -> str:
    """Return one to three characters, as they stand alone on buttons, keys and price tags."""
    return "".join(rng.choices(CHARACTERS, k=rng.randint(1, 3)))


@lru_cache(maxsize=4)
def _characters(path: str) -> tuple[str, ...]:
    """Return the 3,755 most usual Chinese characters (level 1 of GB 2312), and those of the texts."""
    level_1 = (bytes((high, low)).decode("gb2312") for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF)
               if (high, low) <= (0xD7, 0xF9))  # fmt: skip
    return tuple(sorted({*level_1, *read_characters(path, LEAST_OFTEN)}))


def _joined(pieces: list[str], low: int, high: int, rng: random.Random) -> str:
    """Return the first of some words that come to a length between two."""
    wished, text = rng.randint(low, high), ""
    for piece in pieces:
        longer = f"{text} {piece}" if text else piece
        if len(longer) > max(wished, low) and text:
            break
        text = longer
    return text[:high].rstrip()


def _place(rng: random.Random, texts: list[str], font: fonts.Font) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of a picture for some lines, and where the first begins."""
    margin = rng.randint(4, max(8, round(font.size)))
    inner = max(text_width(font, text) for text in texts), math.ceil(line_height(font) * (1 + 1.3 * (len(texts) - 1)))
    size = (inner[0] + 2 * margin, inner[1] + 2 * margin)
    if rng.random() < 0.7:
        return size, (margin, margin)
    roomy = (round(size[0] * rng.uniform(1, 1.8)), round(size[1] * rng.uniform(1, 4)))
    return roomy, (rng.randint(margin, roomy[0] - inner[0] - margin), rng.randint(margin, roomy[1] - inner[1] - margin))
