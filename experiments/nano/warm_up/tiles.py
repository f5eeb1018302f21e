"""Tiles to recognize: texts in many fonts, sprites and shapes, with the class and the box of what each patch shows.

A patch belongs to the thing whose box holds its center. How hard the tiles are is a number from 0 (plain English in few
fonts near one size, and large shapes) to 1 (everything): a random encoder learns nothing from the hard ones for very
long, and the hard ones soon once it can read the easy ones.

n patches along a side, m visual tokens, K things of a visual token that are told apart (`heads.py`). Boxes are
(x0, y0, x1, y1) as parts of the tile's side.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import ImageDraw
from torch import Tensor

from experiments.nano.warm_up.classes import ASCII, Classes
from experiments.nano.warm_up.pages import PageCutter
from experiments.nano.warm_up.sheet import Box, Ink, Sheet, Tile
from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.primer_lines import token
from vl2.synth.restyle import restyle
from vl2.synth.shapes import COLORS, SHAPES, draw_shape
from vl2.synth.sprites import Kind, draw_sprite

CHINESE_FROM, SPRITES_FROM = 0.25, 0.5  # difficulty from which on there are any
EASY_FACES = 6
PAGES_RISE = 3  # their share is whole from a third of the difficulty on
PROBE_ZH = "中文字的是"
LATIN_PX, CHINESE_PX = (12, 24, 56), (15, 28, 64)  # smallest, easiest and largest size of text
COUNTS = (1, 1, 2, 3, 4, 6, 9, 12)  # of things on a tile
SHAPE_PX, SPRITE_PX = 22, 32  # smallest side of a thing on a tile of 168 px
ATTEMPTS = 12  # places tried for a thing


@dataclass(frozen=True, kw_only=True)
class TileBatch:
    """I tiles as the encoder takes them, p patches and Q visual tokens to a tile."""

    tiles_I3PP: Tensor  # float32, from -1 to 1
    classes_Ip: Tensor
    boxes_Ip4: Tensor
    things_IQK: Tensor
    first_boxes_IQ4: Tensor
    first_places_IQ4: Tensor

    def to(self, device: torch.device) -> TileBatch:
        return TileBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> TileBatch:
        pixels = torch.from_numpy(np.stack([tile.pixels for tile in tiles]))
        return cls(
            tiles_I3PP=pixels.permute(0, 3, 1, 2).float() / 127.5 - 1,
            classes_Ip=torch.from_numpy(np.stack([tile.classes for tile in tiles])).flatten(1),
            boxes_Ip4=torch.from_numpy(np.stack([tile.boxes for tile in tiles])).flatten(1, 2),
            things_IQK=torch.from_numpy(np.stack([tile.things for tile in tiles])).flatten(1, 2),
            first_boxes_IQ4=torch.from_numpy(np.stack([tile.first_boxes for tile in tiles])).flatten(1, 2),
            first_places_IQ4=torch.from_numpy(np.stack([tile.first_places for tile in tiles])).flatten(1, 2),
        )


@dataclass(frozen=True, kw_only=True)
class TileDrawer:
    """Draws tiles of `side_px` with patches of `patch_px`. Each list of kinds is one style of sprites."""

    classes: Classes
    texts_en: Sequence[str]
    texts_zh: Sequence[str]
    styles: Sequence[Sequence[Kind]] = ()
    font_folders: tuple[str, ...] | None = None
    side_px: int = 168
    patch_px: int = 14
    chinese_share: float = 0.44  # of all tiles, at full difficulty
    things_share: float = 0.22  # sprites and shapes
    shapes_share: float = 0.375  # of the things, from where there are sprites
    restyled_share: float = 0.0  # of the sprites
    lines_share: float = 0.0  # of the tiles of text: one line, on a picture of its own that is fitted into the tile
    pages: PageCutter | None = None
    pages_share: float = 0.0  # of all tiles: cut from its pictures
    patches_per_token: int = 2  # along a side
    _covered: dict[fonts.Face, frozenset[str]] = field(default_factory=dict, repr=False)
    _chinese: list[fonts.Face] = field(default_factory=list, repr=False)

    def draw(self, rng: random.Random, difficulty: float) -> Tile:
        """Draw one tile from the generator alone."""
        # Letters of pages are small and of all fonts: an encoder that reads none yet learns nothing from them.
        if self.pages is not None and rng.random() < self.pages_share * min(1.0, PAGES_RISE * difficulty):
            return self._page(self.pages, rng).finish(self.side_px, rng, difficulty)
        scale = rng.choice((1.0, 1.0, 1.0, rng.uniform(0.6, 1.8))) if difficulty > 0.3 else 1.0
        chinese = self.chinese_share * min(1.0, max(0.0, (difficulty - CHINESE_FROM) * 2)) if self.texts_zh else 0.0
        chosen = rng.random()
        language = "zh" if chosen < chinese else "en"
        if self.lines_share and chosen < 1 - self.things_share and rng.random() < self.lines_share:
            sheet = self._one_line(rng, difficulty, language)
        else:
            sheet = self._sheet(round(self.side_px * scale), rng)
            if chosen < 1 - self.things_share:
                self._write(sheet, rng, difficulty, language)
            else:
                self._scatter(sheet, rng, difficulty)
        return sheet.finish(self.side_px, rng, difficulty)

    def _sheet(self, side: int, rng: random.Random) -> Sheet:
        return Sheet(side, self.side_px // self.patch_px, self.patches_per_token, rng)

    def _page(self, pages: PageCutter, rng: random.Random) -> Sheet:
        """Return a tile of a picture that holds text and other things, which are nothing here."""
        cut = pages.draw(rng)
        sheet = self._sheet(self.side_px, rng)
        sheet.image.paste(cut.image)
        sheet.pad(cut.frame)
        for char, box in cut.letters:
            self._mark_letter(sheet, char, box)
        return sheet

    def _mark_letter(self, sheet: Sheet, char: str, box: Box) -> None:
        number = self.classes.character(char)
        if number is not None:
            sheet.mark(number, box)
        elif char == " ":
            sheet.mark(self.classes.space, box, is_seen=False)

    def _one_line(self, rng: random.Random, difficulty: float, language: str) -> Sheet:
        """Return a line on a strip as long as the line, padded to a square: whole, or one of two tiles of it."""
        face = self._face(rng, difficulty, language)
        covered = self._covers(face)
        font = fonts.load(face, rng.randint(18, 48))
        margin, most = rng.randint(4, 24), rng.choice((150, 150, 320))
        text = ""
        for _ in range(rng.randint(1, 5)):
            word = self._known(self._word(rng, language), covered)
            longer = f"{text} {word}" if text and language == "en" else text + word
            if text and font.getlength(longer) > most - 2 * margin:
                break
            text = longer
        length = max(font.getlength(text), 8.0)
        if length > most - 2 * margin:
            font = font.font_variant(size=max(10, int(font.size * (most - 2 * margin) / length)))
        width, height = round(font.getlength(text)) + 2 * margin, sum(font.getmetrics()) + 2 * margin
        is_halved = width > 1.4 * self.side_px and rng.random() < 0.6
        side = max(width // 2 if is_halved else width, height)
        sheet = self._sheet(side, rng)
        top = (side - height) / 2
        sheet.pad((0, round(top), side, round(top) + height))
        x = margin - (width - side if is_halved and rng.random() < 0.5 else 0)
        self._write_text(sheet, text, font, (x, top + margin), sheet.ink(rng))
        return sheet

    def _write_text(self, sheet: Sheet, text: str, font: fonts.Font, place: tuple[float, float], ink: Ink) -> float:
        """Write a text and mark its characters; return where it ends. A space is read, not seen."""
        x, y = place
        ascent, descent = font.getmetrics()
        draw = ImageDraw.Draw(sheet.image)
        for char in text:
            advance = font.getlength(char)
            draw.text((x, y), char, ink, font)
            self._mark_letter(sheet, char, (x, y + 0.12 * ascent, x + advance, y + ascent + 0.6 * descent))
            x += advance
            if x >= sheet.side:
                break
        return x

    def _write(self, sheet: Sheet, rng: random.Random, difficulty: float, language: str) -> None:
        """Fill the tile with lines of text, cut off where it ends, as a tile of a larger picture would be."""
        least, easy, most = CHINESE_PX if language == "zh" else LATIN_PX
        reach = 0.1 + 0.9 * difficulty
        bounds = math.log(easy * (least / easy) ** reach), math.log(easy * (most / easy) ** reach)
        face, ink = self._face(rng, difficulty, language), sheet.ink(rng)
        scale, y = sheet.side / self.side_px, rng.uniform(-8, 30)
        y *= scale
        size_px = math.exp(rng.uniform(*bounds))
        while y < sheet.side - 8:
            if rng.random() < 0.4:
                size_px = math.exp(rng.uniform(*bounds))
            font = fonts.load(face, max(8, round(size_px * scale)))
            self._write_line(sheet, rng, language, font, (rng.uniform(-10, 60) * scale, y), ink, self._covers(face))
            y += sum(font.getmetrics()) * rng.uniform(0.95, 1.7)

    def _write_line(
        self,
        sheet: Sheet,
        rng: random.Random,
        language: str,
        font: fonts.Font,
        place: tuple[float, float],
        ink: Ink,
        covered: frozenset[str],
    ) -> None:
        x, y = place
        while x < sheet.side - 2 and rng.random() > 0.05:
            word = self._known(self._word(rng, language), covered)
            x = self._write_text(sheet, word, font, (x, y), ink)
            if x >= sheet.side:
                return
            if language == "en":
                x = self._write_text(sheet, " ", font, (x, y), ink)
            else:
                x += rng.choice((0.0, 0.0, 0.0, float(font.size)))

    def _word(self, rng: random.Random, language: str) -> str:
        chosen = rng.random()
        if language == "zh":
            if chosen < 0.4:  # single characters, rare ones as often as frequent ones
                chars = self.classes.characters[94:]
                return "".join(rng.choice(chars) for _ in range(rng.randint(1, 4)))
            passage = rng.choice(self.texts_zh)
            start = rng.randrange(max(1, len(passage) - 4))
            return passage[start : start + rng.randint(1, 6)]
        if chosen < 0.18:
            return "".join(rng.choice(self.classes.characters[:94]) for _ in range(rng.randint(1, 6)))
        if chosen < 0.36:
            return token(rng)
        word = rng.choice(rng.choice(self.texts_en).split(" "))
        return word.upper() if chosen < 0.5 else word.capitalize() if chosen < 0.62 else word

    def _known(self, word: str, covered: frozenset[str]) -> str:
        """Return the characters that have a class and a glyph."""
        return "".join(c for c in word if c in covered and self.classes.character(c) is not None)

    def _face(self, rng: random.Random, difficulty: float, language: str) -> fonts.Face:
        faces = fonts.find_faces(self.font_folders)
        if language == "zh":
            # A face that has these has most others: to ask for all of every face takes a minute.
            faces = self._chinese_faces()
            if not faces:
                raise UserError("the warm-up has Chinese texts, but no font draws Chinese")
            return rng.choice(faces)
        return rng.choice(faces[: EASY_FACES + round(difficulty**2 * len(faces))])

    def _chinese_faces(self) -> tuple[fonts.Face, ...]:
        if not self._chinese:
            self._chinese.extend(fonts.faces_for(PROBE_ZH, self.font_folders))
        return tuple(self._chinese)

    def _covers(self, face: fonts.Face) -> frozenset[str]:
        if face not in self._covered:
            is_chinese = fonts.covers(face, PROBE_ZH)
            asked = self.classes.characters if is_chinese else ASCII
            self._covered[face] = frozenset(c for c in asked if fonts.covers(face, c))
        return self._covered[face]

    def _scatter(self, sheet: Sheet, rng: random.Random, difficulty: float) -> None:
        """Lay one to twelve things without overlap, partly over the edge now and then; half are padded to a square."""
        frame = _frame(sheet.side, rng)
        count = rng.choice(COUNTS)
        largest = round(150 / count**0.5)
        style = rng.choice(self.styles) if self.styles else ()
        shapes = 1.0 if difficulty <= SPRITES_FROM or not style else self.shapes_share
        taken: list[tuple[int, int, int, int]] = []
        for _ in range(count):
            is_shape = rng.random() < shapes
            least = SHAPE_PX if is_shape else SPRITE_PX
            side = rng.randint(least, largest) * min(frame[2] - frame[0], frame[3] - frame[1]) // self.side_px
            if is_shape:
                shape, color = rng.choice(SHAPES), rng.choice(tuple(COLORS))
                picture, number = draw_shape(shape, COLORS[color][1], side), self.classes.shape(shape.en, color)
            else:
                kind = rng.choice(style)
                picture, number = draw_sprite(kind, side // 8 * 8), self.classes.sprite(kind.en)
                if self.restyled_share and rng.random() < self.restyled_share:
                    picture = restyle(picture, rng)
            box = _free_place(picture.size, frame, taken, rng)
            if box is not None:
                taken.append(box)
                sheet.image.paste(picture, box[:2], picture)
                sheet.mark(number, box)
        sheet.pad(frame)


def _frame(side: int, rng: random.Random) -> tuple[int, int, int, int]:
    """Return where the picture lies that a square is the padded form of: the whole of every other one."""
    if rng.random() < 0.5:
        return (0, 0, side, side)
    short = round(side * rng.uniform(0.55, 1))
    first = (side - short) // 2
    return (0, first, side, first + short) if rng.random() < 0.7 else (first, 0, first + short, side)


def _free_place(
    size: tuple[int, int], frame: tuple[int, int, int, int], taken: list[tuple[int, int, int, int]], rng: random.Random
) -> tuple[int, int, int, int] | None:
    width, height = size
    x0, y0, x1, y1 = frame
    for _ in range(ATTEMPTS):
        x = rng.randint(x0 - width // 6, max(x0 + 1, x1 - width + width // 6))
        y = rng.randint(y0 - height // 6, max(y0 + 1, y1 - height + height // 6))
        if all(x + width <= a or c <= x or y + height <= b or d <= y for a, b, c, d in taken):
            return (x, y, x + width, y + height)
    return None
