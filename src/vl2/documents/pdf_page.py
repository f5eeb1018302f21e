"""What a PDF page holds: its words with boxes and fonts, and with `pdf_graphics.py` its lines and pictures.

All boxes are in points with the origin at the upper left of the page as it is shown, after its own rotation. A word
that is written sideways has its box as it is shown, and `turn` says how far the page must be turned to read it.
pypdfium2 is used through its raw interface where it has no other for characters and paths.
"""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vl2.documents.pdf_graphics import BoxPt, Picture, Point, box_around, read_graphics
from vl2.errors import UserError
from vl2.process.pdf import open_pdf

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

MAX_CHARS = 200_000  # of a page; a page of a telephone book has some 20,000
MAX_GAP_EM = 0.2  # between characters of a word
MAX_BACK_EM = 1.2  # the letters of a ligature share one box
_INVISIBLE = 3  # the text render mode of layers that were added by OCR
_LINE_BREAK_HYPHEN = 2  # what PDFium gives for a hyphen at the end of a line
_BOLD_WORDS = ("bold", "black", "heavy", "semibold", "demi", "cmbx", "sfbx", "medi")
_MONO_WORDS = ("mono", "courier", "consol", "typewriter", "cmtt", "sftt", "fixed")


@dataclass(frozen=True, kw_only=True)
class Word:
    """Characters without white space between them."""

    text: str
    box: BoxPt
    size_pt: float
    is_bold: bool = False
    is_mono: bool = False
    turn: int = 0  # degrees clockwise, 0, 90, 180 or 270, by which the writing is turned
    has_hyphen: bool = False  # a hyphen at its end was set because the line ended


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """Counts of a page's characters, by which its text layer is judged."""

    num_chars: int = 0  # without white space
    num_unknown: int = 0  # that the font maps to no character, or to a private one
    num_invisible: int = 0


@dataclass(frozen=True, kw_only=True)
class PdfContent:
    """A page as it was found."""

    size_pt: Point  # (width, height)
    words: tuple[Word, ...] = ()
    rules: tuple[BoxPt, ...] = ()  # horizontal and vertical lines; one side is thin
    pictures: tuple[Picture, ...] = ()
    counts: LayerCounts = LayerCounts()


def read_pdf_page(path: Path, number: int) -> PdfContent:
    """Return the content of page `number`, counted from 1. Raise UserError if it cannot be read.

    A page with more than MAX_CHARS characters has no words, so that its picture is read instead.
    """
    import pypdfium2

    with open_pdf(path) as document:
        try:
            page = document[number - 1]
            place, size = _placement(page)
            words, counts = _words(page, place)
            rules, pictures = read_graphics(page, place, size)
        except (pypdfium2.PdfiumError, IndexError) as error:
            raise UserError(f"cannot read page {number} of {path}: {error}") from None
    return PdfContent(
        size_pt=size,
        words=tuple(words),
        rules=tuple(rules),
        pictures=tuple(pictures),
        counts=counts,
    )


def _placement(page: PdfPage) -> tuple[Callable[[float, float], Point], Point]:
    """Return the function from points of the file to points as shown, and the size as shown."""
    left, bottom, right, top = page.get_cropbox()
    turn = page.get_rotation()
    places: dict[int, Callable[[float, float], Point]] = {
        0: lambda x, y: (x - left, top - y),
        90: lambda x, y: (y - bottom, x - left),
        180: lambda x, y: (right - x, y - bottom),
        270: lambda x, y: (top - y, right - x),
    }
    size = (right - left, top - bottom) if turn in (0, 180) else (top - bottom, right - left)
    return places[turn], size


@dataclass(frozen=True, kw_only=True)
class _Font:
    is_bold: bool
    is_mono: bool
    is_invisible: bool


@dataclass(frozen=True, kw_only=True)
class _Char:
    text: str
    box: BoxPt
    size_pt: float
    turn: int
    font: _Font
    is_hyphen: bool


def _words(page: PdfPage, place: Callable[[float, float], Point]) -> tuple[list[Word], LayerCounts]:
    chars: list[_Char] = []
    words: list[Word] = []
    num_chars = num_unknown = num_invisible = 0
    layer = page.get_textpage()
    if layer.count_chars() > MAX_CHARS:
        return [], LayerCounts()
    for char, is_unknown in _chars(page, layer, place):
        if char is None or (chars and not _goes_on(chars[-1], char)):
            words += _finished(chars)
            chars = []
        if char is None:
            continue
        num_chars += 1
        num_unknown += is_unknown
        num_invisible += char.font.is_invisible
        chars.append(char)
    words += _finished(chars)
    return words, LayerCounts(num_chars=num_chars, num_unknown=num_unknown, num_invisible=num_invisible)


def _chars(page: PdfPage, layer: Any, place: Callable[[float, float], Point]) -> Iterator[tuple[_Char | None, bool]]:
    """Yield each character, and whether it is unknown; None for white space."""
    import pypdfium2.raw as raw

    fonts: dict[int, _Font] = {}
    page_turn, high = page.get_rotation(), 0
    rect, matrix = raw.FS_RECTF(), raw.FS_MATRIX()
    sides = [ctypes.c_double() for _ in range(4)]
    for index in range(layer.count_chars()):
        code = raw.FPDFText_GetUnicode(layer, index)
        if 0xD800 <= code <= 0xDBFF:  # a character beyond 16 bits is given in two halves
            high = code
            continue
        if 0xDC00 <= code <= 0xDFFF:
            code = 0x10000 + ((high - 0xD800) << 10) + code - 0xDC00 if high else 0xFFFD
        high = 0
        is_hyphen = code == _LINE_BREAK_HYPHEN
        text = "-" if is_hyphen else chr(code) if code else "\ufffd"
        if text.isspace() or text in "\u200b\ufeff\ufffe":
            yield None, False
            continue
        raw.FPDFText_GetLooseCharBox(layer, index, rect)
        corners = [(rect.left, rect.bottom), (rect.right, rect.top)]
        if not rect.right > rect.left or not rect.top > rect.bottom:
            raw.FPDFText_GetCharBox(layer, index, *sides)
            left, right, bottom, top = (side.value for side in sides)
            corners = [(left, bottom), (right, top)]
        size = raw.FPDFText_GetFontSize(layer, index)
        if raw.FPDFText_GetMatrix(layer, index, matrix):
            size *= math.hypot(matrix.c, matrix.d)
        angle = raw.FPDFText_GetCharAngle(layer, index)  # counterclockwise from the page's x axis, in radians
        turn = (page_turn + (round(math.degrees(angle) / 90) * 90 if angle > 0 else 0)) % 360
        drawn = raw.FPDFText_GetTextObject(layer, index)
        key = ctypes.addressof(drawn.contents) if drawn else 0
        if key not in fonts:
            fonts[key] = _read_font(drawn, raw.FPDFText_GetFontWeight(layer, index))
        is_unknown = raw.FPDFText_HasUnicodeMapError(layer, index) == 1 or _is_unknown(code)
        box = box_around([place(x, y) for x, y in corners])
        yield (
            _Char(
                text=text, box=box, size_pt=size, turn=turn, font=fonts[key], is_hyphen=is_hyphen or text == "\u00ad"
            ),
            is_unknown,
        )


def _is_unknown(code: int) -> bool:
    is_control = code < 0x20 and code != _LINE_BREAK_HYPHEN
    return is_control or code == 0xFFFD or 0xE000 <= code <= 0xF8FF or code >= 0xF0000


def _read_font(drawn: Any, weight: int) -> _Font:
    """Return what matters of the font of a text object, by its weight, flags and name."""
    import pypdfium2.raw as raw

    if not drawn:
        return _Font(is_bold=weight >= 600, is_mono=False, is_invisible=False)
    font = raw.FPDFTextObj_GetFont(drawn)
    buffer = ctypes.create_string_buffer(128)
    raw.FPDFFont_GetBaseFontName(font, buffer, len(buffer))
    name = buffer.value.decode("latin-1").lower()
    flags = raw.FPDFFont_GetFlags(font)
    return _Font(
        is_bold=weight >= 600 or bool(flags > 0 and flags & 1 << 18) or any(word in name for word in _BOLD_WORDS),
        is_mono=bool(flags > 0 and flags & 1) or any(word in name for word in _MONO_WORDS),
        is_invisible=raw.FPDFTextObj_GetTextRenderMode(drawn) == _INVISIBLE,
    )


def _goes_on(last: _Char, char: _Char) -> bool:
    """Tell whether a character belongs to the same word as the one before it."""
    if last.turn != char.turn:
        return False
    (x0, y0, x1, y1), (u0, v0, u1, v1) = last.box, char.box
    em = max(1.0, last.size_pt, char.size_pt)
    if char.turn in (90, 270):
        overlap, gap = min(x1, u1) - max(x0, u0), (v0 - y1 if char.turn == 90 else y0 - v1)
        height = min(x1 - x0, u1 - u0)
    else:
        overlap, gap = min(y1, v1) - max(y0, v0), (u0 - x1 if char.turn == 0 else x0 - u1)
        height = min(y1 - y0, v1 - v0)
    return overlap > 0.3 * height and -MAX_BACK_EM * em < gap < MAX_GAP_EM * em


def _finished(chars: Sequence[_Char]) -> list[Word]:
    if not chars:
        return []
    boxes = [char.box for char in chars]
    return [
        Word(
            text=_with_accents("".join(char.text for char in chars if char.text != "\u00ad"))
            + "-" * (chars[-1].text == "\u00ad"),
            box=(
                min(b[0] for b in boxes),
                min(b[1] for b in boxes),
                max(b[2] for b in boxes),
                max(b[3] for b in boxes),
            ),
            size_pt=max(char.size_pt for char in chars),
            is_bold=2 * sum(char.font.is_bold for char in chars) > len(chars),
            is_mono=2 * sum(char.font.is_mono for char in chars) > len(chars),
            turn=chars[0].turn,
            has_hyphen=chars[-1].is_hyphen,
        )
    ]


_ACCENTS = dict(zip("´¨ˆ˜ˇ˘¯˙˝¸", "\u0301\u0308\u0302\u0303\u030c\u0306\u0304\u0307\u030b\u0327", strict=True))
_ACCENTED = re.compile(f"([{''.join(_ACCENTS)}])([A-Za-zı])")


def _with_accents(text: str) -> str:
    """Return a word in which an accent that was drawn before its letter, as TeX does, is one character with it."""

    def composed(found: re.Match[str]) -> str:
        letter = unicodedata.normalize("NFC", found[2].replace("ı", "i") + _ACCENTS[found[1]])
        return letter if len(letter) == 1 else found[0]

    return _ACCENTED.sub(composed, text)
