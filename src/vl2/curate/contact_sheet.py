"""Draw a preview of records as one image: thumbnails with boxes, and a caption with token counts under each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from PIL import Image, ImageDraw

from vl2.curate.preview import COLORS, INK_ON_COLORS, PreviewItem
from vl2.data.record import PLACEHOLDER, Record
from vl2.data.store.entry import Problem
from vl2.synth.fonts import BUILT_IN, Face, Font, covers, find_faces, load

COLUMNS = 4
CELL_PX = (360, 300)  # (width, height) of the thumbnail, without the caption
CAPTION_PX = 84
GAP_PX = 14
BACKGROUND, CARD, INK, DIM, BAD = "#f4f5f7", "#ffffff", "#1b1f24", "#5f6773", "#b42318"
TEXT_PX, LINE_PX, LABEL_PX = 12, 18, 11


def contact_sheet(items: Sequence[PreviewItem | Problem]) -> Image.Image:
    """Return the contact sheet, with four records per row."""
    columns = max(1, min(COLUMNS, len(items)))
    rows = max(1, -(-len(items) // columns))
    width, height = CELL_PX[0] + GAP_PX, CELL_PX[1] + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (columns * width + GAP_PX, rows * height + GAP_PX), BACKGROUND)
    for number, item in enumerate(items):
        corner = (GAP_PX + number % columns * width, GAP_PX + number // columns * height)
        sheet.paste(_cell(item), corner)
    return sheet


def _cell(item: PreviewItem | Problem) -> Image.Image:
    cell = Image.new("RGB", (CELL_PX[0], CELL_PX[1] + CAPTION_PX), CARD)
    if isinstance(item, Problem):
        _write(cell, 10, str(item), BAD, lines=18)
        return cell
    if item.images:
        _draw_pictures(cell, item)
    else:
        _write(cell, 10, _question(item), INK, lines=16)
    counts = item.counts
    numbers = f"{counts.text:,} text ({counts.trained:,} trained) + {counts.visual:,} visual, {counts.tiles} tiles"
    answer = " ".join(_with_labels(part.text or "", item.record) for part in item.record.messages[-1].parts)
    top = CELL_PX[1] + 6
    _write(cell, top, f"{item.record.id} · {item.record.category} · {item.record.language}", INK)
    _write(cell, top + LINE_PX, numbers, DIM)
    _write(cell, top + 2 * LINE_PX, answer, INK, lines=2)
    return cell


def _write(cell: Image.Image, top: int, text: str, color: str, *, lines: int = 1) -> None:
    """Write the first lines of a text, wrapped to the width of the cell."""
    font = _font(text, TEXT_PX)
    pen = ImageDraw.Draw(cell)
    for number, line in enumerate(islice(_wrap(text, font, cell.width - 20), lines)):
        pen.text((10, top + number * LINE_PX), line, fill=color, font=font)


def _wrap(text: str, font: Font, width_px: int) -> Iterator[str]:
    """Yield lines that fit the width, broken at spaces where possible."""
    for paragraph in text.splitlines():
        rest = paragraph.strip()
        while rest:
            fitting = next((n for n in range(1, len(rest)) if font.getlength(rest[: n + 1]) > width_px), len(rest))
            blank = rest.rfind(" ", 0, fitting + 1)
            end = blank if blank > 0 and fitting < len(rest) else fitting
            yield rest[:end]
            rest = rest[end:].lstrip()


def _font(text: str, size_px: int) -> Font:
    """Return Pillow's built-in font if it covers the text, else the installed font that covers most characters."""
    if text.isascii() or covers(BUILT_IN, text):
        return load(BUILT_IN, size_px)

    def score(face: Face) -> tuple[int, bool]:
        return sum(covers(face, char) for char in set(text)), "Bold" not in face.name

    return load(max(find_faces(), key=score), size_px)


def _with_labels(text: str, record: Record) -> str:
    """Replace each box placeholder by its label; the box itself is drawn on the image."""
    if not record.objects:
        return text
    return PLACEHOLDER.sub(lambda match: f"[{record.objects[int(match[1])].label}]", text)


def _question(item: PreviewItem) -> str:
    return "\n".join(f"{m.role}: {' '.join(p.text or '' for p in m.parts)}" for m in item.record.messages[:-1])


def _draw_pictures(cell: Image.Image, item: PreviewItem) -> None:
    """Draw the images side by side, with equal shares of the width."""
    share = CELL_PX[0] // len(item.images)
    if share < 8:
        share = 8  # a document with many images: only the first ones fit
    for index, image in enumerate(item.images[: CELL_PX[0] // share]):
        small = _with_boxes(image, item, index, (share - 2, CELL_PX[1]))
        cell.paste(small, (index * share + (share - small.width) // 2, (CELL_PX[1] - small.height) // 2))


def _with_boxes(image: Image.Image, item: PreviewItem, index: int, limit: tuple[int, int]) -> Image.Image:
    scale = min(limit[0] / image.width, limit[1] / image.height)
    small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    pen = ImageDraw.Draw(small)
    labels = list(dict.fromkeys(labeled.label for labeled in item.record.objects))
    for labeled in item.record.objects:
        color = labels.index(labeled.label) % len(COLORS)
        name = labeled.label[:24]
        font = _font(name, LABEL_PX)
        for box in labeled.boxes_px if labeled.image == index else ():
            x0, y0, x1, y1 = (value * scale for value in box)
            pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=COLORS[color], width=2)
            _, _, right, bottom = pen.textbbox((0, 0), name, font=font)
            x, y = max(0.0, min(x0, small.width - right - 4)), y0 - bottom - 3 if y0 > bottom + 3 else y0
            pen.rectangle((x, y, x + right + 4, y + bottom + 3), fill=COLORS[color])
            pen.text((x + 2, y + 1), name, fill=INK_ON_COLORS[color], font=font)
    return small
