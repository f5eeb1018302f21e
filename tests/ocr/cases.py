"""The pictures that the goldens of the DeepSeek-OCR family were recorded on: many shapes and all modes, by a rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

MODES = ("tiny", "small", "base", "large", "gundam")
PROMPTS = ("Free OCR.", "<|grounding|>Convert the document to markdown.", "Parse the figure.")
ANSWER_TOKENS = 24  # of each greedy answer
NUM_SIZES = 10_000


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    size: tuple[int, int]  # (width, height)
    mode: str
    prompt: str
    kind: str = "deepseek-ocr"


# Each mode sees small and large, wide and tall pictures; "gundam" both sides of its border at 640 px, and many grids.
_SIZES = {
    "tiny": [(512, 512), (33, 47), (640, 480), (300, 900), (1200, 1600), (2000, 90), (64, 64), (511, 513), (17, 1200),
             (777, 333), (1600, 1200), (100, 640)],
    "small": [(640, 640), (50, 37), (1000, 700), (120, 1500), (1700, 60), (641, 639), (320, 320), (90, 200),
              (1300, 1301), (800, 40)],
    "base": [(1024, 1024), (600, 800), (1500, 400), (40, 1800), (1240, 1754), (200, 150), (1023, 1025)],
    "large": [(1280, 1280), (700, 1900), (2200, 300), (400, 400), (1754, 1240)],
    "gundam": [(640, 640), (641, 640), (640, 1300), (1240, 1754), (1900, 500), (30, 1000), (1500, 1500), (2000, 1300),
               (100, 90), (3000, 640)],
}  # fmt: skip
CASES = [
    Case(name=f"{mode}-{width}x{height}", size=(width, height), mode=mode, prompt=PROMPTS[number % len(PROMPTS)])
    for mode, sizes in _SIZES.items()
    for number, (width, height) in enumerate(sizes)
]

# DeepSeek-OCR-2 has fewer modes, and its border is at 768 px.
_SIZES_2 = {
    "small": [(768, 768), (90, 200), (1600, 900)],
    "base": [(1024, 1024), (600, 800), (1500, 400)],
    "gundam": [(768, 768), (769, 768), (768, 1300), (1240, 1754), (1900, 500), (100, 90), (1600, 1600), (2000, 1300),
               (3000, 640)],
}  # fmt: skip
CASES_2 = [
    Case(name=f"2-{mode}-{width}x{height}", size=(width, height), mode=mode, prompt=PROMPTS[number % len(PROMPTS)],
         kind="deepseek-ocr-2")
    for mode, sizes in _SIZES_2.items()
    for number, (width, height) in enumerate(sizes)
]  # fmt: skip


def picture(case: Case) -> Image.Image:
    """Draw a picture with large areas, lines as of text, and fine noise."""
    width, height = case.size
    draws = np.random.RandomState(width * 10_000 + height)
    areas = draws.randint(0, 256, (7, 5, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(areas).resize((width, height), Image.Resampling.NEAREST)).copy()
    for row in range(3, height, 11):
        pixels[row : row + 4, : draws.randint(1, width + 1)] = draws.randint(0, 60)
    noise = draws.randint(-20, 21, pixels.shape)
    return Image.fromarray(np.clip(pixels.astype(np.int64) + noise, 0, 255).astype(np.uint8))


def many_sizes() -> list[tuple[int, int]]:
    """Return sizes of pictures: of pages, strips and squares, and where two grids are equally close."""
    draws = np.random.RandomState(37)
    sides = np.exp(draws.uniform(np.log(16), np.log(6000), (NUM_SIZES - 1000, 2))).astype(int)
    sizes = [(int(width), int(height)) for width, height in sides]
    # Halfway between two shapes, as 5 : 4 between 1 : 1 and 3 : 2, the number of pixels decides.
    while len(sizes) < NUM_SIZES:
        (a, b), (c, d), k = draws.randint(1, 7, 2), draws.randint(1, 7, 2), int(draws.randint(1, 60))
        sizes.append((int(a * d + b * c) * k, int(2 * b * d) * k))
    return sizes
