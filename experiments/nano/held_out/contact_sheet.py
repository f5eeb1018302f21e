"""A sheet of a task's pictures with what is asked and what is right, to be looked at."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from experiments.nano.held_out.fonts import load
from vl2.eval.task import Item, Result

CELL_PX, TEXT_PX, COLUMNS = (340, 250), 78, 4
LETTERS = 46  # of a line of text under a picture
INK = {None: "#333333", True: "#0a6b2d", False: "#a01818"}


def draw_sheet(items: Sequence[Item], font: Path, results: Mapping[str, Result] | None = None) -> Image.Image:
    """Draw items in a grid: each picture no larger than it is, the question, the gold answer, what the model said."""
    width, height = CELL_PX[0], CELL_PX[1] + TEXT_PX
    rows = -(-len(items) // COLUMNS)
    sheet = Image.new("RGB", (width * min(COLUMNS, len(items)), height * rows), "#c9c9c9")
    draw = ImageDraw.Draw(sheet)
    written = load(font, 13)
    for number, item in enumerate(items):
        x, y = number % COLUMNS * width, number // COLUMNS * height
        source = item.images[0]
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((width - 8, CELL_PX[1] - 8))
        for box in item.gold if isinstance(item.gold, list) and "size" in item.notes else ():
            scale = picture.width / item.notes["size"][0]
            ImageDraw.Draw(picture).rectangle([v * scale for v in box], outline="#ff00ff")
        sheet.paste(picture, (x + 4, y + 4))
        result = (results or {}).get(item.id)
        texts = [*textwrap.wrap(item.question, LETTERS)[:3], f"right: {_short(item.gold)}"[:LETTERS]]
        if result is not None:
            texts.append(f"said: {result.answer!r}"[:LETTERS])
        is_right = None if result is None else result.score >= 0.5
        draw.multiline_text((x + 6, y + CELL_PX[1]), "\n".join(texts), fill=INK[is_right], font=written, spacing=1)
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline="#ffffff")
    return sheet


def _short(gold: object) -> str:
    if isinstance(gold, list):
        return " / ".join(_short(part) for part in gold)
    return f"{gold:.0f}" if isinstance(gold, float) else str(gold)
