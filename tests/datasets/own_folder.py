"""A person's folder: small pictures with one square each, and tables about them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLORS = {"red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 60, 220)}
SIDE = 60


def draw_images(folder: Path, count: int) -> list[tuple[str, str, list[int]]]:
    """Draw pictures of one square; return name, colour and box in pixels of each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        color = list(COLORS)[number % len(COLORS)]
        x, y = number * 7 % 30, number * 11 % 30
        box = [x, y, x + 25, y + 25]
        image = Image.new("RGB", (SIDE, SIDE), (240, 240, 240))
        ImageDraw.Draw(image).rectangle(tuple(box), fill=COLORS[color])
        image.save(folder / "images" / f"{number}.png")
        made.append((f"images/{number}.png", color, box))
    return made


def color_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    return [
        {"image": name, "question": "What colour is the square?", "answer": color}
        for name, color, _ in draw_images(folder, count)
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
