"""The tests of olmOCR-bench: facts about a page that hold of its Markdown or do not.

| type | what passes |
|---|---|
| present, absent | the text occurs, or does not, up to `max_diffs` different characters |
| order | one text begins before another |
| table | a table has the cell, with the given neighbors and headings |
| math | a formula of the page is the gold formula |
| baseline | the page has letters or digits, does not end in repetitions, and has no Chinese, Japanese or emoji |
| format, footnote | a heading, bold or italic text; a footnote's marker between two texts |

The official program compares formulas as KaTeX draws them in a browser. Here a formula passes if it is written as the
gold one; for any other the result is None: it needs the browser.

Source: allenai/olmocr, `olmocr/bench/tests.py` (commit f7cfe4c2).
Golden: tests/golden/scorers/olmocr_bench.json.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from vl2.errors import UserError
from vl2.eval.score.table_cells import Cell, CellGrid, Side, html_tables, markdown_tables
from vl2.optional_imports import import_extra

Test = Mapping[str, Any]

_MARKUP = (
    (r"<br/?>", " "), (r"\*\*(.*?)\*\*", r"\1"), (r"__(.*?)__", r"\1"), (r"</?b>", ""), (r"</?i>", ""),
    (r"(\*\*|__)(.*?)\1", r"\2"), (r"(\*|_)(.*?)\1", r"\2"), (r"\s+", " "),
)  # fmt: skip
_PLAIN_CHARS = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "＿": "_", "–": "-", "—": "-", "‑": "-", "‒": "-",
     "−": "-", "\u00b5": "\u03bc"}
)  # fmt: skip
_UNWANTED = re.compile("[\u4e00-\u9fff\u3040-\u309f\u30a0-\u30ff\U0001f300-\U0001f5ff\U0001f600-\U0001f64f"
                       "\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff]")  # fmt: skip
MAX_REPEATS = 30
REPEATED_CHARS = 5  # repetitions of up to so many characters
LEAST_SIMILARITY = 0.5  # of a table's cells, however many differences are allowed
_FORMULAS = (r"\\\((.+?)\\\)", r"\\\[(.+?)\\\]", r"\$\$(.+?)\$\$", r"\$(.+?)\$")  # the last two use dollars
_FORMATS = {
    "heading": ((r"^#{1,6}\s+(.+?)$", re.MULTILINE), (r"<h[1-6][^>]*>(.*?)</h[1-6]>", re.IGNORECASE | re.DOTALL)),
    "bold": (
        (r"\*\*(.*?)\*\*", re.DOTALL), (r"__(.*?)__", re.DOTALL), (r"<b[^>]*>(.*?)</b>", re.IGNORECASE | re.DOTALL),
        (r"<strong[^>]*>(.*?)</strong>", re.IGNORECASE | re.DOTALL),
    ),
    "italic": (
        (r"(?<!\*)\*(?!\*)(.*?)(?<!\*)\*(?!\*)", re.DOTALL), (r"(?<!_)_(?!_)(.*?)(?<!_)_(?!_)", re.DOTALL),
        (r"<i[^>]*>(.*?)</i>", re.IGNORECASE | re.DOTALL), (r"<em[^>]*>(.*?)</em>", re.IGNORECASE | re.DOTALL),
    ),
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
FOOTNOTE_CHARS = 200  # before and after a marker


def passes(test: Test, markdown: str) -> bool | None:
    """Return whether a test holds of a page's Markdown; None for a formula that only a browser can compare.

    Raise UserError for a type that is not in the table above, or a test without a field that its type needs.
    """
    if test["type"] not in _RUN:
        raise UserError(f"test {test['id']}: the type must be one of {', '.join(_RUN)}, got {test['type']!r}")
    try:
        return _RUN[test["type"]](test, markdown)
    except KeyError as missing:
        raise UserError(f"test {test['id']} of type {test['type']} has no {missing}") from None


def normalize(text: str) -> str:
    """Remove bold and italic marks, collapse white space, and write quotes and dashes in ASCII."""
    for pattern, by in _MARKUP:
        text = re.sub(pattern, by, text)
    return unicodedata.normalize("NFC", text).translate(_PLAIN_CHARS)


def _least(test: Test, text: str) -> float:
    """Return the similarity that a text must have, by the number of allowed differences."""
    return 1.0 - float(test.get("max_diffs", 0)) / max(1, len(text))


def _fuzz(name: str) -> Callable[[str, str], float]:
    ratio = getattr(import_extra("rapidfuzz.fuzz", "documents", "olmocr_bench"), name)
    return lambda a, b: float(ratio(a, b)) / 100


def _occurs(test: Test, markdown: str) -> bool:
    wanted, page = normalize(test["text"]), normalize(markdown)
    if not test.get("case_sensitive", True):
        wanted, page = wanted.lower(), page.lower()
    first, last = test.get("first_n"), test.get("last_n")
    if first or last:
        page = (page[:first] if first else "") + (page[-last:] if last else "")
    return _fuzz("partial_ratio")(wanted, page) >= _least(test, wanted)


def _in_order(test: Test, markdown: str) -> bool:
    find = import_extra("fuzzysearch", "documents", "olmocr_bench").find_near_matches
    page, allowed = normalize(markdown), test.get("max_diffs", 0)
    before, after = ([m.start for m in find(normalize(test[name]), page, max_l_dist=allowed)]
                     for name in ("before", "after"))  # fmt: skip
    return bool(before and after) and min(before) < max(after)


def _has_cell(test: Test, markdown: str) -> bool:
    found = [] if test.get("ignore_markdown_tables") else [markdown_tables(markdown)]
    return any(_cell_is_in(test, table) for table in chain(*found, html_tables(markdown)))


def _cell_is_in(test: Test, table: CellGrid) -> bool:
    wanted = normalize(test["cell"])
    return any(_is_like(test, wanted, cell) and _is_placed(test, cell, table) for cell in table.cells)


def _is_like(test: Test, wanted: str, cell: Cell) -> bool:
    return _fuzz("ratio")(wanted, normalize(cell.text)) >= max(LEAST_SIMILARITY, _least(test, wanted))


def _is_placed(test: Test, cell: Cell, table: CellGrid) -> bool:
    sides: tuple[Side, ...] = ("up", "down", "left", "right")
    wanted = [(test.get(side), table.neighbors(cell, side)) for side in sides if test.get(side)]
    if test.get("top_heading"):
        wanted.append((test["top_heading"], table.headings(cell, "up")))
    if test.get("left_heading"):
        wanted.append((test["left_heading"], table.headings(cell, "left")))
    return all(any(_is_like(test, normalize(str(text)), other) for other in others) for text, others in wanted)


def _has_formula(test: Test, markdown: str) -> bool | None:
    found: list[str] = []
    for pattern in _FORMULAS[:2] if test.get("ignore_dollar_delimited") else _FORMULAS:
        found += [formula.strip() for formula in re.findall(pattern, markdown, re.DOTALL)]
        markdown = re.sub(pattern, "", markdown, flags=re.DOTALL)
    if test["math"] in found:
        return True
    return None if found else False


def _is_sound(test: Test, markdown: str) -> bool:
    if test.get("max_length") is not None:  # the page is blank
        skips = test.get("max_length_skips_image_alt_tags", False)
        text = re.sub(r"!\[.*?\]\(.*?\)", "", markdown) if skips else markdown
        return _num_alphanumeric(text) <= int(test["max_length"])
    if not _num_alphanumeric(markdown):
        return False
    if any(_repeats(markdown, size) > test.get("max_repeats", MAX_REPEATS) for size in range(1, REPEATED_CHARS + 1)):
        return False
    return not (test.get("check_disallowed_characters", True) and _UNWANTED.search(markdown))


def _num_alphanumeric(text: str) -> int:
    return sum(char.isalnum() for char in text)


def _repeats(text: str, size: int) -> int:
    """Return how often the last `size` characters follow one another at the end, white space collapsed."""
    text = re.sub(r"\s+", " ", text)
    last, count = text[-size:], 0
    if len(text) < size:
        return 0
    while text[len(text) - (count + 1) * size : len(text) - count * size] == last:
        count += 1
        if (count + 1) * size > len(text):
            break
    return count


def _has_format(test: Test, markdown: str) -> bool:
    wanted = normalize(test["text"])
    found = [normalize(text) for pattern, flags in _FORMATS[test["format"]]
             for text in re.findall(pattern, markdown, flags)]  # fmt: skip
    if not test.get("case_sensitive", True):
        wanted, found = wanted.lower(), [text.lower() for text in found]
    ratio = _fuzz("partial_ratio")
    return any(ratio(wanted, text) >= _least(test, wanted) for text in found)


def _has_footnote(test: Test, markdown: str) -> bool:
    marker = str(test["marker"])
    patterns = [rf"\[\^{re.escape(marker)}\](?!:)", rf"(?i:<sup[^>]*>{re.escape(marker)}</sup>)"]
    if all(char in "0123456789" for char in marker):
        patterns.append(re.escape(marker.translate(_SUPERSCRIPT)))
    places = [match.span() for pattern in patterns for match in re.finditer(pattern, markdown)]
    before = [_letters(markdown[max(0, start - FOOTNOTE_CHARS) : start]) for start, _ in places]
    after = [_letters(markdown[end : end + FOOTNOTE_CHARS]) for _, end in places]
    return bool(places) and all(
        not text or any(_is_beside(test, normalize(text), part, at_end=at_end) for part in parts)
        for text, parts, at_end in (
            (test.get("appears_before_marker"), before, True), (test.get("appears_after_marker"), after, False)
        )
    )  # fmt: skip


def _is_beside(test: Test, wanted: str, text: str, *, at_end: bool) -> bool:
    letters = _letters(wanted)
    length = min(len(text), 2 * len(letters))
    near = (text[-length:] if at_end and length else text[:length]) if length else text
    return bool(text) and _fuzz("partial_ratio")(letters, near) >= _least(test, wanted)


def _letters(text: str) -> str:
    return "".join(char for char in normalize(text) if char.isalnum()).lower()


_RUN: dict[str, Callable[[Test, str], bool | None]] = {
    "present": _occurs, "absent": lambda test, markdown: not _occurs(test, markdown), "order": _in_order,
    "table": _has_cell, "math": _has_formula, "baseline": _is_sound, "format": _has_format, "footnote": _has_footnote,
}  # fmt: skip
