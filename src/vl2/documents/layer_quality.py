"""Whether the text layer of a PDF page is good: then it is the page's text, and no model has to read the picture.

A layer is refused for the first of these reasons:

1. The page shows something, and the layer has no text.
2. More than 5 % of the characters are unknown: their font maps them to no character, or to one for private use.
3. More than half of the characters are invisible, as in the layer that OCR adds to a scan.
4. A picture covers at least half of the page, and the layer has fewer than 200 characters.
5. Of at least 20 Latin words of four or more letters, more than 15 % have no vowel: the font maps characters wrongly.

An empty page is good: there is nothing to read.
"""

from __future__ import annotations

import re
import unicodedata

from vl2.documents.pdf_page import PdfContent

MAX_UNKNOWN = 0.05
MAX_INVISIBLE = 0.5
MAX_PICTURE = 0.5  # of the page's area
FEW_CHARS = 200
MIN_WORDS = 20
MAX_WITHOUT_VOWEL = 0.15

_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{4,}")
_VOWELS = frozenset("aeiouyAEIOUYæøœÆØŒıǝ")


def why_refused(content: PdfContent) -> str | None:
    """Return why the page's picture should be read instead of its text layer; None if the layer is good."""
    counts = content.counts
    if counts.num_chars == 0:
        return "it has no text" if content.pictures else None
    if counts.num_unknown > MAX_UNKNOWN * counts.num_chars:
        return f"{counts.num_unknown} of {counts.num_chars} characters are unknown"
    if counts.num_invisible > MAX_INVISIBLE * counts.num_chars:
        return "its text is invisible, as OCR adds it to a scan"
    area = content.size_pt[0] * content.size_pt[1]
    covered = max((_area(p.box) for p in content.pictures if not p.is_drawing), default=0.0)
    if covered >= MAX_PICTURE * area and counts.num_chars < FEW_CHARS:
        return f"a picture covers the page, and there are {counts.num_chars} characters beside it"
    words = [found for word in content.words for found in _LATIN_WORD.findall(word.text)]
    num_without = sum(not _has_vowel(word) for word in words)
    if len(words) >= MIN_WORDS and num_without > MAX_WITHOUT_VOWEL * len(words):
        return f"{num_without} of {len(words)} words have no vowel"
    return None


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _has_vowel(word: str) -> bool:
    return any(letter in _VOWELS for letter in unicodedata.normalize("NFD", word))
