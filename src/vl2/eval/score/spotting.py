"""F1 of spotted words: a word counts if its box has an IoU above 0.5 with a gold word's box and the text is the same.

Boxes are whole numbers. Case is ignored, and so is one punctuation mark at either end of the gold text. Gold words
`###` are not cared for, nor are answers with more than half of their area in one of them. Each gold word takes the
first box that overlaps it enough, in order.

Source: the ICDAR 2015 end-to-end protocol as OCRBench v2 runs it (`spotting_metric.py`, `spotting_eval/script.py`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from vl2.eval.score.boxes import area, iou

Word = tuple[tuple[int, int, int, int], str]

MIN_IOU = 0.5  # exclusive
MAX_COORDINATE = 1000
UNCARED = "###"
_MARKS = "!?.:,*\"()·[]/'"
_IN_BRACKETS = re.compile(r"[\[(]\s*([^\[\]()]*?)\s*[\])]")
_QUOTED = re.compile(r'^\s*"(.*)"\s*$')


def read_words(answer: str) -> list[Word]:
    """Read the words of an answer, such as `[(x0, y0, x1, y1, "text"), ...]`, each once, with boxes up to 1,000."""
    found: dict[Word, None] = {}
    for parts in _entries(answer):
        try:
            x0, y0, x1, y1 = (int(part.strip()) for part in parts[:4])
        except ValueError:
            continue
        text = parts[4].replace("\n", "").strip().strip('"').strip("'")
        if all(0 <= v <= MAX_COORDINATE for v in (x0, y0, x1, y1)):
            found[((x0, y0, x1, y1), text)] = None
    return list(found)


def _entries(answer: str) -> Iterator[list[str]]:
    try:
        values = ast.literal_eval(answer)  # literals only, no names and no calls
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        values = None
    if values is None:
        for inside in _IN_BRACKETS.findall(answer):
            parts = inside.split(",", 4)
            if len(parts) == 5:
                yield parts
    elif isinstance(values, list | tuple):
        yield from ([str(v) for v in item] for item in values if isinstance(item, list | tuple) and len(item) >= 5)


def spotting_f1(said: Sequence[Word], gold_boxes: Sequence[Sequence[int]], gold_texts: Sequence[str]) -> float:
    """Return the F1 of words. A gold box is any number of corners: x0, y0, x1, y1, ..."""
    words = [(box, _unquoted(text)) for box, text in said if box[0] < box[2] and box[1] < box[3]]
    golds = [
        ((min(box[0::2]), min(box[1::2]), max(box[0::2]), max(box[1::2])), _unquoted(text))
        for box, text in zip(gold_boxes, gold_texts, strict=False)
    ]
    uncared = [box for box, text in golds if text == UNCARED]
    words = [word for word in words if not any(_share_inside(word[0], box) > MIN_IOU for box in uncared)]
    golds = [gold for gold in golds if gold[1] != UNCARED]
    used: set[int] = set()
    right = 0
    for box, text in golds:
        for index, (found, read) in enumerate(words):
            if index not in used and iou(box, found) > MIN_IOU:
                used.add(index)
                right += _is_same(text.upper(), read.upper())
                break
    if not right:
        return 0.0
    recall, precision = right / len(golds), right / len(words)
    return 2 * recall * precision / (recall + precision)


def _share_inside(box: Sequence[float], other: Sequence[float]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, width) * max(0.0, height) / area(box)


def _is_same(gold: str, said: str) -> bool:
    if gold == said:
        return True
    starts, ends = gold[:1] in _MARKS and gold != "", gold[-1:] in _MARKS and gold != ""
    return (starts and gold[1:] == said) or (ends and gold[:-1] == said) or (starts and ends and gold[1:-1] == said)


def _unquoted(text: str) -> str:
    quoted = _QUOTED.match(text)
    return quoted[1].replace("\\\\", "\\").replace('\\"', '"') if quoted else text
