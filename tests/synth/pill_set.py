"""A sprite set that tests can write."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw


def write_set(folder: Path, **changes: object) -> Path:
    """Write a sprite set of four pills."""
    entries = []
    for number, color in enumerate(("red", "green", "blue", "black")):
        picture = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
        ImageDraw.Draw(picture).ellipse((10, 20, 50, 40), fill=color)
        picture.save(folder / f"s{number}.png")
        entries.append({"file": f"s{number}.png", "en": f"{color} pill", "zh": f"药丸{number}"})
    content = {"name": "pills", "licence": "MIT", "sprites": entries, **changes}
    (folder / "sprites.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
