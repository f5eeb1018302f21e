"""Words to lines, and how the words of lines are joined to running text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from vl2.documents.pdf_graphics import BoxPt
from vl2.documents.pdf_page import Word

SPACE_EM = 0.25
CELL_GAP_EM = 1.8  # a wider gap within a line separates cells
_BULLET = re.compile(r"[•●○◦▪■□▸►‣⁃∙·–—*\-\uf0b7]$")
_NUMBER = re.compile(r"(?:\d{1,3}|[a-z]|[ivx]{2,4})[.)]$|\((?:\d{1,3}|[a-z]|[ivx]{1,4})\)$|\[\d{1,3}\]$")
LEADER = re.compile(r"\s?(?:\.\s?){5,}|(?:\s\.){2,}\s|\s?[…·]{3,}\s?")
# Chinese, Japanese and their punctuation, which are written without spaces.
_UNSPACED = re.compile(r"[\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Line:
    """Words on one line, from left to right."""

    words: tuple[Word, ...]

    @cached_property
    def box(self) -> BoxPt:
        return around([word.box for word in self.words])

    @cached_property
    def size_pt(self) -> float:
        """The size of most characters."""
        sizes: Counter[float] = Counter()
        for word in self.words:
            sizes[round(word.size_pt, 1)] += len(word.text)
        return sizes.most_common(1)[0][0]

    @cached_property
    def is_bold(self) -> bool:
        return 2 * sum(len(word.text) for word in self.words if word.is_bold) > sum(len(w.text) for w in self.words)

    @cached_property
    def is_mono(self) -> bool:
        """Whether nearly all characters are of fixed width."""
        return sum(len(w.text) for w in self.words if w.is_mono) >= 0.9 * sum(len(w.text) for w in self.words)

    @property
    def marker(self) -> str:
        """The bullet or the number with which the line begins an item of a list; "" for none."""
        first = self.words[0].text
        return first if len(self.words) > 1 and (is_bullet(first) or _NUMBER.match(first)) else ""

    @cached_property
    def has_leader(self) -> bool:
        """Whether dots lead from a title to its page, as in a table of contents."""
        return LEADER.search(" ".join(word.text for word in self.words)) is not None

    @cached_property
    def cells(self) -> list[list[Word]]:
        """The words, split at wide gaps. The gap after the marker of an item does not count."""
        cells: list[list[Word]] = [[self.words[0]]]
        for index, (last, word) in enumerate(zip(self.words, self.words[1:], strict=False)):
            if word.box[0] - last.box[2] > CELL_GAP_EM * self.size_pt and not (index == 0 and self.marker):
                cells.append([])
            cells[-1].append(word)
        return cells


def is_bullet(text: str) -> bool:
    """Tell whether a word is the bullet of a list."""
    return _BULLET.match(text) is not None


def around(boxes: Sequence[BoxPt]) -> BoxPt:
    """Return the smallest box around boxes."""
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def is_full(line: Line, following: Line, right: float) -> bool:
    """Tell whether the next word would not have fit on the line, so that the line ended for want of room."""
    first = following.words[0].box
    if line.words[-1].has_hyphen:
        return True
    return line.box[2] + SPACE_EM * line.size_pt + (first[2] - first[0]) > right - 0.1 * line.size_pt


def to_lines(words: Sequence[Word]) -> list[Line]:
    """Return the lines of words that stand in one column, from top to bottom."""
    rows: list[list[Word]] = []
    top = bottom = 0.0
    for word in sorted(words, key=lambda word: (word.box[1] + word.box[3]) / 2):
        y0, y1 = word.box[1], word.box[3]
        overlap = min(bottom, y1) - max(top, y0)
        if rows and overlap > 0.5 * min(bottom - top, y1 - y0):
            rows[-1].append(word)
            if y1 - y0 > bottom - top:  # the largest word of a line says where the line is
                top, bottom = y0, y1
        else:
            rows.append([word])
            top, bottom = y0, y1
    return [Line(tuple(sorted(row, key=lambda word: word.box[0]))) for row in rows]


def join_words(words: Sequence[Word]) -> str:
    """Return the text of words on one line."""
    text = ""
    for word in words:
        text = add_text(text, word.text)
    return text


def join_lines(lines: Sequence[Line], vocabulary: Set[str] = frozenset()) -> str:
    """Return the running text of lines. A word that was hyphenated at the end of a line is joined.

    A hyphen stays if `vocabulary`, the words elsewhere in the document, has the word with it and not without.
    """
    text = ""
    for line in lines:
        text = add_line(text, join_words(line.words), vocabulary)
    return text


def add_line(text: str, line: str, vocabulary: Set[str] = frozenset()) -> str:
    """Return a text that goes on with a line, where it may have been hyphenated."""
    start = re.search(r"(\w+)[-\u2010\u00ad]$", text)
    rest = re.match(r"[^\W\d_]+", line)
    is_known = start is not None and rest is not None and (start[1] + rest[0]).lower() in vocabulary
    if start is None or rest is None or not (rest[0][0].islower() or is_known):
        if re.search(r"\w[-\u2010/]$", text) and re.match(r"\w", line):
            return text + line  # "pre-" and "COVID", "and/" and "or"
        return add_text(text, line)
    whole, compound = start[1] + rest[0], f"{start[1]}-{rest[0]}"
    keeps = compound.lower() in vocabulary and whole.lower() not in vocabulary
    return text[:-1] + "-" * keeps + line


def add_text(text: str, more: str) -> str:
    """Return two pieces of a text joined by a space, or by none where the script has none."""
    if not text or not more:
        return text + more
    if _UNSPACED.match(text[-1]) and _UNSPACED.match(more[0]):
        return text + more
    return f"{text} {more}"


def vocabulary_of(lines: Sequence[Line]) -> Set[str]:
    """Return the words of lines, in lower case, without those that are cut at the end of a line."""
    return {
        found.lower()
        for line in lines
        for word in line.words
        for found in re.findall(r"\w+(?:-\w+)*", word.text)
        if not word.text.endswith(("-", "\u2010"))
    }
