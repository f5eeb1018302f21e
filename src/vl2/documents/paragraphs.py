"""Lines of one column to paragraphs, list items and code, by gaps, indents, sizes and line ends."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from vl2.documents.block import BlockType
from vl2.documents.lines import LEADER, Line, add_line, around, is_bullet, is_full, join_lines, join_words
from vl2.documents.pdf_graphics import BoxPt

INDENT_EM = 0.8
MAX_SIZE_CHANGE = 1.08
_CAPTION = re.compile(
    r"(?:fig(?:ure|\.)?|table|tab\.|abb(?:ildung|\.)|tabelle|图|表|圖)\s{0,2}[A-Z]?\d[\w.\-]{0,8}", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """Lines that belong together, in points."""

    type: BlockType
    text: str
    box: BoxPt
    size_pt: float
    is_bold: bool
    marker: str = ""
    indent_pt: float = 0.0  # of a list item, from the left edge of its column


def to_blocks(lines: Sequence[Line], vocabulary: Set[str]) -> list[TextBlock]:
    """Return the blocks of the lines of one column, from top to bottom."""
    if not lines:
        return []
    left, _, right, _ = around([line.box for line in lines])
    usual_gap = _usual_gap(lines)
    groups: list[list[Line]] = []
    for line in lines:
        if groups and not _begins(line, groups[-1], left, right, usual_gap):
            groups[-1].append(line)
        else:
            groups.append([line])
    return _merged_code([_to_block(group, left, vocabulary) for group in groups])


def _usual_gap(lines: Sequence[Line]) -> float:
    """Return the gap between lines of a paragraph, in ems: that of a quarter of all lines is at most as large."""
    gaps = sorted((b.box[1] - a.box[3]) / b.size_pt for a, b in itertools.pairwise(lines))
    return min(1.5, max(0.0, gaps[len(gaps) // 4])) if gaps else 0.0


def _begins(line: Line, group: Sequence[Line], left: float, right: float, usual_gap: float) -> bool:
    """Tell whether a line begins a block, rather than going on with the lines before it."""
    last, em = group[-1], line.size_pt
    if line.is_mono != last.is_mono and not (abs(line.box[0] - left) < 0.3 * em and is_full(last, line, right)):
        return True
    if line.is_mono and last.is_mono:
        return line.box[1] - last.box[3] > (usual_gap + 2.5) * em
    if last.has_leader:
        return True
    if max(line.size_pt, last.size_pt) > MAX_SIZE_CHANGE * min(line.size_pt, last.size_pt):
        return True
    if line.box[1] - last.box[3] > (usual_gap + 0.35) * em:
        return True
    end = last.words[-1].text
    if end[-1] in "-\u2010" and end[-2:-1].isalpha() and line.words[0].text[0].islower():
        return False  # the line cut a word
    if line.marker and (is_bullet(line.words[0].text) or group[0].marker or not is_full(last, line, right)):
        return True
    if _are_centered(last, line, left, right):
        return False
    if not is_full(last, line, right):
        return True
    indent = line.box[0] - last.box[0]
    if group[0].marker:  # the text of an item hangs to the right of its marker
        return indent < -INDENT_EM * em or (
            len(group) == 1 and abs(indent) < 0.3 * em and line.box[0] < left + 0.3 * em
        )
    if indent > INDENT_EM * em:
        return True
    return indent < -INDENT_EM * em and len(group) > 1


def _are_centered(a: Line, b: Line, left: float, right: float) -> bool:
    middle, em = (left + right) / 2, a.size_pt
    return all(
        abs((line.box[0] + line.box[2]) / 2 - middle) < 0.5 * em and line.box[0] - left > 2 * em for line in (a, b)
    )


def _to_block(lines: Sequence[Line], left: float, vocabulary: Set[str]) -> TextBlock:
    box = around([line.box for line in lines])
    size, is_bold = lines[0].size_pt, all(line.is_bold for line in lines)
    if all(line.is_mono for line in lines):
        return TextBlock(type="code", text=_code(lines), box=box, size_pt=size, is_bold=is_bold)
    if lines[-1].has_leader:
        text = LEADER.sub(" ... ", join_lines(lines, vocabulary)).strip()
        return TextBlock(type="list_item", text=text, box=box, size_pt=size, is_bold=is_bold, indent_pt=box[0] - left)
    marker = lines[0].marker
    if marker:
        rest = join_lines([Line(lines[0].words[1:]), *lines[1:]], vocabulary)
        return TextBlock(type="list_item", text=rest, box=box, size_pt=size, is_bold=is_bold,
                         marker="" if is_bullet(marker) else marker, indent_pt=box[0] - left)  # fmt: skip
    text = ""
    for line in lines:
        text = add_line(text, join_words(line.words), vocabulary)
    kind: BlockType = "caption" if _CAPTION.match(text) and len(lines) <= 6 and _is_caption(text) else "paragraph"
    return TextBlock(type=kind, text=text, box=box, size_pt=size, is_bold=is_bold)


def _is_caption(text: str) -> bool:
    """Tell a caption, "Figure 3: ...", from a sentence that begins with "Figure 3 shows"."""
    named = _CAPTION.match(text)
    return named is not None and re.match(r"\s*(?:[:.：。|—–-]|$)", text[named.end() :]) is not None


def _code(lines: Sequence[Line]) -> str:
    """Return lines of fixed width, with their indents and the gaps between their words in characters."""
    left = min(line.box[0] for line in lines)
    widths = [(w.box[2] - w.box[0]) / len(w.text) for line in lines for w in line.words]
    width = max(0.1, sorted(widths)[len(widths) // 2])
    rows: list[str] = []
    previous: Line | None = None
    for line in lines:
        row = ""
        for word in line.words:
            column = round((word.box[0] - left) / width)
            row += " " * max(bool(row), column - len(row)) + word.text
        if previous is not None and line.box[1] - previous.box[3] > 0.8 * line.size_pt:
            rows.append("")
        rows.append(row)
        previous = line
    return "\n".join(rows)


def _merged_code(blocks: Sequence[TextBlock]) -> list[TextBlock]:
    """Return the blocks; a single word of code on a line of its own within text is a paragraph."""
    return [
        TextBlock(type="paragraph", text=block.text, box=block.box, size_pt=block.size_pt, is_bold=block.is_bold)
        if block.type == "code" and " " not in block.text and "\n" not in block.text
        else block
        for block in blocks
    ]
