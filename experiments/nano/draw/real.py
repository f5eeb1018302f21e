"""Pictures that others made: SROIE's receipts, NLVR's scenes, photographs of cells and cards.

One in five shops, groups of scenes and photographs is kept back and never shown. Receipts are asked about whole, and in
parts, whose letters are larger.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pyarrow.parquet as pq
from PIL import Image

from experiments.nano.draw.base import NanoSource
from experiments.nano.draw.frame import scale_of
from experiments.nano.draw.phrasing import phrase
from experiments.nano.splits import is_test_photo, is_test_scene, is_test_shop
from vl2.data import locate_phrases
from vl2.data.record import BoxPx
from vl2.datasets.drawn_sets import statement
from vl2.datasets.receipt_sets import FIELDS
from vl2.synth.draft import Draft
from vl2.synth.nouns import article, plural
from vl2.synth.source import Dropped

MOST_ROWS = 8
LEAST_SEEN_PX = 9  # of a line's height in the middle, as the processor scales it
ASKED = {"total": "total", "date": "date", "shop": "company"}  # a question, and the field that answers it
SAME_LINE = 0.6  # of a line's height: texts whose middles are no further apart are on one line

# The set writes every text in capitals, however a receipt has it.
IN_CAPITALS = (
    "Write it in capital letters.",
    "In capitals, please.",
    "Use capital letters only.",
    "Everything in upper case.",
    "Give it in capitals, whatever the receipt has.",
    "(All in capitals.)",
)
TOTAL = re.compile(r"(?<!sub)(?<!sub )(?<!sub-)total", re.IGNORECASE)

Line = tuple[str, BoxPx]


def _rows(folder: str) -> Iterator[dict[str, Any]]:
    for path in sorted(Path(folder).glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=32):
            yield from batch.to_pylist()


@lru_cache(maxsize=2)
def _receipts(folder: str) -> tuple[dict[str, Any], ...]:
    return tuple(row for row in _rows(folder) if not is_test_shop(str(row["company"] or row["id"])))


@dataclass(frozen=True, kw_only=True)
class RealReceipts(NanoSource):
    """Tasks "read" (the lines of a part), "total", "date" and "shop" (of a part that shows it), "whole" (all three).

    "line" cuts out one text alone, as short as a single letter, which then fills the picture.
    """

    name = "nano_real_receipts"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("read", "read", "total", "date", "shop", *("whole",) * 4, "line")

    def draft(self, rng: random.Random) -> Draft:
        row = rng.choice(_receipts(str(Path(self.inputs) / "sets/sroie")))
        task = self.pick_task(rng)
        with Image.open(io.BytesIO(row["image"])) as opened:
            image = opened.convert("RGB")
        lines = [(line["text"], (line["x0"], line["y0"], line["x1"], line["y1"])) for line in row["lines"]]
        rows = in_rows([line for line in lines if line[0]])
        draft = Draft(language="en")
        if task == "whole":
            self._picture(rng, draft, image, (0, 0, *image.size), [line for row_of in rows for line in row_of])
            for field in rng.sample(tuple(ASKED), len(ASKED)):
                _ask(rng, draft, field, row[ASKED[field]], rows)
            if not draft.messages:
                raise Dropped("no line shows a field")
            return draft
        if task == "line":
            part, line = _cut_line(rng, rng.choice([line for row_of in rows for line in row_of]), image.size)
            self._picture(rng, draft, image, part, [line])
            draft.ask(_to_read("read", line[0], rng), line[0], [draft.show(line[0], letters(*line))])
            return draft
        field = ASKED.get(task, "")
        wanted = [n for n, row_of in enumerate(rows) if not field or shows(row_of, row[field])]
        if not wanted:
            raise Dropped("no line shows the field")
        first, last = _around(rng, rng.choice(wanted), len(rows))
        box, shown = _cut(rows, first, last, image.size)
        self._picture(rng, draft, image, box, shown)
        if field:
            _ask(rng, draft, task, row[field], in_rows(shown))
            return draft
        answer = "\n".join(text for text, _ in shown)
        draft.ask(
            _to_read("read_lines", answer, rng), answer, [draft.show(text, letters(text, b)) for text, b in shown]
        )
        return draft

    def _picture(
        self, rng: random.Random, draft: Draft, image: Image.Image, box: tuple[int, int, int, int], shown: list[Line]
    ) -> None:
        """Add a part of a picture, if the lines that it shows can be read."""
        part = image.crop(box)
        if median(line[1][3] - line[1][1] for line in shown) * scale_of(part.size) < LEAST_SEEN_PX:
            raise Dropped("the lines are too small to be read")
        draft.picture(part, jpeg_quality=rng.randint(70, 92))


def _to_read(question: str, text: str, rng: random.Random) -> str:
    """Return a way to ask for a text, in capitals if it has letters."""
    asked = phrase(question, "en", rng)
    return f"{asked} {rng.choice(IN_CAPITALS)}" if text.upper() != text.lower() else asked


def _ask(rng: random.Random, draft: Draft, task: str, value: str | None, rows: list[list[Line]]) -> None:
    """Ask for a field if a row shows it: for the total, one that says so, where there is one."""
    having = [row for row in rows if shows(row, value)]
    if not having or value is None:
        return
    said = [row for row in having if any(TOTAL.search(text) for text, _ in row)] if task == "total" else []
    seen = next(line for line in (said or having)[0] if value in line[0])
    at = seen[0].index(value)
    question = FIELDS[ASKED[task]] if rng.random() < 0.4 else phrase(f"receipt_{task}", "en", rng)
    draft.ask(question, value, [draft.show(value, letters(*seen)[at : at + len(value)])])


def shows(row: list[Line], value: str | None) -> bool:
    """Tell whether a row of texts shows a value."""
    return bool(value) and any(str(value) in text for text, _ in row)


def letters(text: str, box: BoxPx) -> list[BoxPx]:
    """Return a box for each character of a line, all of one width."""
    x0, y0, x1, y1 = box
    step = (x1 - x0) / len(text)
    return [(x0 + n * step, y0, min(x1, x0 + (n + 1) * step), y1) for n in range(len(text))]


def in_rows(lines: list[Line]) -> list[list[Line]]:
    """Return the texts of a receipt row by row, each from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line[1][1] + line[1][3]):
        middle, height = (line[1][1] + line[1][3]) / 2, line[1][3] - line[1][1]
        if rows and middle - (rows[-1][0][1][1] + rows[-1][0][1][3]) / 2 < SAME_LINE * height:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line[1][0]) for row in rows]


def _around(rng: random.Random, row: int, count: int) -> tuple[int, int]:
    """Return the first and the last of some rows, `row` among them."""
    length = rng.randint(1, MOST_ROWS)
    first = rng.randint(max(0, row - length + 1), row)
    return first, min(count - 1, first + length - 1)


def _cut(
    rows: list[list[Line]], first: int, last: int, size: tuple[int, int]
) -> tuple[tuple[int, int, int, int], list[Line]]:
    """Return the part of a picture that has these rows, and where their texts are in it."""
    boxes = [box for row in rows[first : last + 1] for _, box in row]
    above = max((box[3] for row in rows[:first] for _, box in row), default=0.0)
    below = min((box[1] for row in rows[last + 1 :] for _, box in row), default=float(size[1]))
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    left, right = min(box[0] for box in boxes), max(box[2] for box in boxes)
    margin = 0.6 * (boxes[0][3] - boxes[0][1])
    # Half of what is free above and below, for a row that is cut through would have to be read.
    y0 = max(0, round(top - min(margin, max(0.0, (top - above) / 2))))
    y1 = min(size[1], round(bottom + min(margin, max(0.0, (below - bottom) / 2))))
    x0, x1 = max(0, round(left - 2 * margin)), min(size[0], round(right + 2 * margin))
    moved = [
        (text, (max(0.0, box[0] - x0), max(0.0, box[1] - y0), min(box[2], x1) - x0, min(box[3], y1) - y0))
        for row in rows[first : last + 1]
        for text, box in row
    ]
    return (x0, y0, x1, y1), moved


def _cut_line(rng: random.Random, line: Line, size: tuple[int, int]) -> tuple[tuple[int, int, int, int], Line]:
    """Return the part of a picture that has one text, close around it, and where the text is in it."""
    text, (x0, y0, x1, y1) = line
    beside, above = ((y1 - y0) * rng.uniform(0, most) for most in (0.6, 0.25))
    left, top = max(0, round(x0 - beside)), max(0, round(y0 - above))
    right, bottom = min(size[0], round(x1 + beside)), min(size[1], round(y1 + above))
    moved = (max(0.0, x0 - left), max(0.0, y0 - top), min(x1, right) - left, min(y1, bottom) - top)
    return (left, top, right, bottom), (text, moved)


@lru_cache(maxsize=2)
def _scenes(folder: str) -> tuple[dict[str, Any], ...]:
    return tuple(row for row in _rows(folder) if not is_test_scene(row["group"]))


@dataclass(frozen=True, kw_only=True)
class RealStatements(NanoSource):
    """NLVR's scenes with sentences that people wrote: true or false; and what is in the scene, counted and found."""

    name = "nano_real_statements"
    category = "vqa"
    tasks_known: ClassVar[tuple[str, ...]] = ("statement",)

    def draft(self, rng: random.Random) -> Draft:
        row = rng.choice(_scenes(str(Path(self.inputs) / "sets/nlvr")))
        draft = Draft(language="en")
        with Image.open(io.BytesIO(row["image"])) as opened:
            draft.picture(opened.convert("RGB"))
        sentence = row["sentence"].strip()
        asked, answer = statement(sentence, bool(row["label"]))
        draft.ask(asked if rng.random() < 0.6 else phrase("is_true", "en", rng, statement=sentence), answer)
        boxes: dict[str, list[BoxPx]] = {}
        for found in row["objects"]:
            name = f"{found['color']} {found['shape']}"
            boxes.setdefault(name, []).append((found["x0"], found["y0"], found["x1"], found["y1"]))
        for name in rng.sample(sorted(boxes), min(2, len(boxes))):
            shown, noun = sorted(boxes[name]), plural(name)
            if len(shown) <= 9:
                question = phrase("count", "en", rng, noun=noun, measure="")
                draft.ask(question, str(len(shown)), [draft.show(noun, shown)])
        return draft


@dataclass(frozen=True)
class Photograph:
    """A photograph and what lies where in it."""

    image: bytes
    objects: tuple[tuple[str, BoxPx], ...]
    kind: str


NAMES = {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"}


@lru_cache(maxsize=2)
def photographs(folder: str) -> tuple[Photograph, ...]:
    """Read the photographs with boxes."""
    return tuple(
        Photograph(
            image=row["image"],
            objects=tuple(
                (NAMES.get(o["name"], o["name"]), (o["x0"], o["y0"], o["x1"], o["y1"])) for o in row["objects"]
            ),
            kind="blood cells" if row["source"] == "bccd" else "playing cards",
        )
        for row in _rows(folder)
        if not is_test_photo(row["id"])
    )


def ask_photograph(rng: random.Random, draft: Draft, row: Photograph) -> None:
    """Ask whether something is there and where. Red cells are not all boxed, so nobody asks for all of them."""
    names = sorted({name for name, _ in row.objects if name != "red blood cell"})
    known = sorted(
        set(NAMES.values()) if row.kind == "blood cells" else {"nine", "ten", "jack", "queen", "king", "ace"}
    )
    for name in rng.sample(known, 2):
        if name != "red blood cell":
            boxes = sorted(box for other, box in row.objects if other == name)
            question = phrase("presence", "en", rng, name=name, a_name=article(name))
            draft.ask(question, "Yes." if boxes else "No.", [draft.show(name, boxes)])
    for name in names[:2]:
        boxes = sorted(box for other, box in row.objects if other == name)
        draft.ask(locate_phrases.locate(rng, "en", name), draft.box(name, boxes))
    if not draft.messages:
        raise Dropped("nothing can be asked")
