"""Draw the sample pictures in examples/. The same Pillow gives the same files.

    python tools/draw_examples.py [FOLDER] [--chinese-font FILE]

Sizes are (width, height) in pixels. The font is the one inside Pillow, but for the line of Chinese, which is drawn only
where a font for it is given: the one in examples/ is WenQuanYi Micro Hei. The five small pictures are for the built-in
model, whose tiles have 168 px. `questions()` and `boxes()` say what the pictures show, from the values that are drawn.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vl2.synth.fonts import BUILT_IN
from vl2.synth.primer_charts import Bars, draw_bars
from vl2.synth.scene import Composed, compose
from vl2.synth.sprites import built_in_kinds

INK = (38, 38, 46)
FAINT = (150, 148, 142)

ITEMS = (
    (2, "ESPRESSO", "5.60"),
    (1, "GREEN TEA", "3.20"),
    (3, "BUTTER CROISSANT", "8.70"),
    (1, "LEMON CAKE", "4.50"),
    (1, "ORANGE JUICE", "3.90"),
)
BILL = (("Green Tea", "3.20"), ("Croissant", "2.90"), ("Yoghurt", "1.85"))
BARS = Bars(title="Visitors", names=("Lisbon", "Oslo", "Leeds", "Cairo"), values=("62", "35", "48", "81"))
SCENE = ("red heart", "blue star", "blue star", "green house", "red heart", "blue star")
WORD = "Station"
LINE = "今天天气很好"

BoxPx = tuple[float, float, float, float]
SQUARE: BoxPx = (44, 50, 154, 160)
CIRCLE: BoxPx = (190, 46, 308, 164)
TRIANGLE = ((406, 42), (340, 164), (472, 164))
PENTAGON = (562, 110, 62)  # centre and radius


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str = "la") -> None:
    draw.text(at, text, font=ImageFont.load_default(size), fill=INK, anchor=anchor)


def dashed_line(draw: ImageDraw.ImageDraw, left: int, right: int, y: int) -> None:
    for x in range(left, right, 10):
        draw.line((x, y, min(x + 5, right), y), fill=FAINT, width=2)


def receipt() -> Image.Image:
    """Draw a till receipt, 480 x 640, whose sums are right."""
    image = Image.new("RGB", (480, 640), (118, 126, 138))
    draw = ImageDraw.Draw(image)
    draw.rectangle((38, 26, 450, 626), fill=(96, 103, 114))  # the shadow of the paper
    draw.rectangle((30, 18, 442, 618), fill=(252, 251, 247))
    left, right, middle = 56, 416, 236

    write(draw, (middle, 40), "CORNER CAFE", 38, "ma")
    write(draw, (middle, 92), "12 MARKET STREET, OLD TOWN", 17, "ma")
    write(draw, (middle, 116), "TEL 555 0142", 17, "ma")
    dashed_line(draw, left, right, 150)
    write(draw, (left, 162), "DATE: 14/03/2026", 18)
    write(draw, (right, 162), "10:42", 18, "ra")
    write(draw, (left, 188), "RECEIPT NO: 000731", 18)
    dashed_line(draw, left, right, 222)

    y = 238
    for count, name, price in ITEMS:
        write(draw, (left, y), f"{count}", 20)
        write(draw, (left + 32, y), name, 20)
        write(draw, (right, y), price, 20, "ra")
        y += 32
    dashed_line(draw, left, right, y + 8)

    total = sum(round(float(price) * 100) for _, _, price in ITEMS)
    tax = round(total * 6 / 106)
    write(draw, (left, y + 22), "SUBTOTAL", 20)
    write(draw, (right, y + 22), f"{(total - tax) / 100:.2f}", 20, "ra")
    write(draw, (left, y + 52), "TAX 6%", 20)
    write(draw, (right, y + 52), f"{tax / 100:.2f}", 20, "ra")
    write(draw, (left, y + 86), "TOTAL", 32)
    write(draw, (right, y + 86), f"{total / 100:.2f}", 32, "ra")
    dashed_line(draw, left, right, y + 136)
    write(draw, (left, y + 148), "CASH", 18)
    write(draw, (right, y + 148), "30.00", 18, "ra")
    write(draw, (left, y + 172), "CHANGE", 18)
    write(draw, (right, y + 172), f"{30 - total / 100:.2f}", 18, "ra")
    return image


def mug(draw: ImageDraw.ImageDraw, x: int, y: int, color: tuple[int, int, int], label: str) -> None:
    """Draw a mug, 130 x 124, with its label below. (x, y) is the top left corner."""
    shade = tuple(part * 3 // 4 for part in color)
    draw.ellipse((x + 78, y + 26, x + 130, y + 92), outline=color, width=14)
    draw.rounded_rectangle((x, y + 4, x + 100, y + 124), radius=14, fill=color)
    draw.ellipse((x, y, x + 100, y + 24), fill=shade)
    write(draw, (x + 50, y + 136), label, 22, "ma")


def shapes() -> Image.Image:
    """Draw four shapes above three mugs, 640 x 480."""
    image = Image.new("RGB", (640, 480), (246, 244, 238))
    draw = ImageDraw.Draw(image)
    draw.rectangle(SQUARE, fill=(240, 190, 40))
    draw.ellipse(CIRCLE, fill=(45, 110, 200))
    draw.polygon(TRIANGLE, fill=(40, 150, 90))
    draw.regular_polygon(PENTAGON, 5, fill=(130, 80, 170))
    for centre, name in ((99, "SQUARE"), (249, "CIRCLE"), (406, "TRIANGLE"), (562, "PENTAGON")):
        write(draw, (centre, 178), name, 22, "ma")
    draw.line((30, 232, 610, 232), fill=FAINT, width=2)
    for x, color, label in ((50, (205, 55, 50), "RED"), (252, (60, 130, 205), "BLUE"), (454, (80, 80, 88), "GRAY")):
        mug(draw, x, 270, color, label)
    return image


def bill_total() -> str:
    return f"{sum(round(float(price) * 100) for _, price in BILL) / 100:.2f}"


def bill() -> Image.Image:
    """Draw a small receipt, 200 x 164."""
    image = Image.new("RGB", (200, 164), (250, 249, 245))
    draw = ImageDraw.Draw(image)
    write(draw, (100, 8), "Harbour Coffee", 18, "ma")
    write(draw, (100, 32), "14/03/2026", 18, "ma")
    for n, (name, price) in enumerate(BILL):
        write(draw, (12, 58 + 24 * n), name, 18)
        write(draw, (188, 58 + 24 * n), price, 18, "ra")
    draw.line((12, 131, 188, 131), fill=INK)
    write(draw, (12, 134), "TOTAL", 18)
    write(draw, (188, 134), bill_total(), 18, "ra")
    return image


def bars() -> Image.Image:
    """Draw a bar chart of four cities with printed values."""
    image, _ = draw_bars(BARS, BUILT_IN, random.Random(3))
    return image


def scene() -> Composed:
    """Lay three stars, two hearts and a house on a plain ground, 168 x 168."""
    named = {kind.full_name("en"): kind for kind in built_in_kinds()}
    return compose([named[name] for name in SCENE], (168, 168), random.Random(8))


def word() -> Image.Image:
    """Write one English word on a strip, 150 x 56."""
    image = Image.new("RGB", (150, 56), (252, 250, 244))
    write(ImageDraw.Draw(image), (75, 28), WORD, 30, "mm")
    return image


def line(font: str) -> Image.Image:
    """Draw one line of Chinese, 230 x 60."""
    image = Image.new("RGB", (230, 60), (252, 250, 244))
    face = ImageFont.truetype(font, 32, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(image).text((115, 30), LINE, INK, face, "mm")
    return image


def questions() -> Iterator[tuple[str, str, str]]:
    """Yield (picture, question, right answer) from what is drawn."""
    yield "bill", "What is the total amount?", bill_total()
    for name, value in zip(BARS.names, BARS.values, strict=True):
        yield "bars", f"What value does the chart show for {name}?", value
    for name in dict.fromkeys(SCENE):
        yield "scene", f"How many {name}s are there?", str(SCENE.count(name))
        yield "scene", f"Is there a {name}?", "Yes."
    yield "scene", "Is there a yellow circle?", "No."
    for question in ("What does the image say?", "图片上写着什么？"):
        yield "word", question, WORD
        yield "line", question, LINE


def boxes() -> Iterator[tuple[str, str, list[BoxPx]]]:
    """Yield (picture, what is looked for, its boxes in pixels, left to right) from what is drawn."""
    composed = scene()
    for name in dict.fromkeys(SCENE):
        yield "scene", name, [tuple(map(float, box)) for box in composed.boxes("en", name)]
    x, y, radius = PENTAGON
    corners = [(x + radius * math.sin(n * math.tau / 5), y - radius * math.cos(n * math.tau / 5)) for n in range(5)]
    yield "shapes", "yellow square", [SQUARE]
    yield "shapes", "blue circle", [CIRCLE]
    yield "shapes", "green triangle", [_around(TRIANGLE)]
    yield "shapes", "purple pentagon", [_around(corners)]


def _around(points: Sequence[tuple[float, float]]) -> BoxPx:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1] / "examples")
    parser.add_argument("--chinese-font", default="")
    args = parser.parse_args()
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "receipt": receipt(),
        "shapes": shapes(),
        "bill": bill(),
        "bars": bars(),
        "scene": scene().image,
        "word": word(),
    }
    if args.chinese_font:
        pictures["line"] = line(args.chinese_font)
    for name, image in pictures.items():
        image.save(folder / f"{name}.png", optimize=True)
        print(f"wrote {folder / f'{name}.png'}")


if __name__ == "__main__":
    main()
