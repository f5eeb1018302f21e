"""Draw the sample pictures in examples/. The same Pillow gives the same files.

    python tools/draw_examples.py [FOLDER]

Sizes are (width, height) in pixels. The only font is the one inside Pillow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

INK = (38, 38, 46)
FAINT = (150, 148, 142)

ITEMS = (
    (2, "ESPRESSO", "5.60"),
    (1, "GREEN TEA", "3.20"),
    (3, "BUTTER CROISSANT", "8.70"),
    (1, "LEMON CAKE", "4.50"),
    (1, "ORANGE JUICE", "3.90"),
)


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


def mug(draw: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, int, int], label: str) -> None:
    """Draw a mug, 130 x 124, with its label below. (x, y) is the top left corner."""
    shade = tuple(part * 3 // 4 for part in colour)
    draw.ellipse((x + 78, y + 26, x + 130, y + 92), outline=colour, width=14)
    draw.rounded_rectangle((x, y + 4, x + 100, y + 124), radius=14, fill=colour)
    draw.ellipse((x, y, x + 100, y + 24), fill=shade)
    write(draw, (x + 50, y + 136), label, 22, "ma")


def shapes() -> Image.Image:
    """Draw four shapes above three mugs, 640 x 480."""
    image = Image.new("RGB", (640, 480), (246, 244, 238))
    draw = ImageDraw.Draw(image)
    draw.rectangle((44, 50, 154, 160), fill=(240, 190, 40))
    draw.ellipse((190, 46, 308, 164), fill=(45, 110, 200))
    draw.polygon([(406, 42), (340, 164), (472, 164)], fill=(40, 150, 90))
    draw.regular_polygon((562, 110, 62), 5, fill=(130, 80, 170))
    for centre, name in ((99, "SQUARE"), (249, "CIRCLE"), (406, "TRIANGLE"), (562, "PENTAGON")):
        write(draw, (centre, 178), name, 22, "ma")
    draw.line((30, 232, 610, 232), fill=FAINT, width=2)
    for x, colour, label in ((50, (205, 55, 50), "RED"), (252, (60, 130, 205), "BLUE"), (454, (80, 80, 88), "GRAY")):
        mug(draw, x, 270, colour, label)
    return image


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in (("receipt", receipt()), ("shapes", shapes())):
        image.save(folder / f"{name}.png", optimize=True)
        print(f"wrote {folder / f'{name}.png'}")


if __name__ == "__main__":
    main()
