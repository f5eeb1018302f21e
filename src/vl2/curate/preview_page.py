"""The preview as one HTML page that needs nothing else: images inside, no script, every text escaped.

Records come from strangers. Pictures are decoded and encoded anew, and a policy forbids the page to load anything.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib.resources import files

from PIL import Image

from vl2.curate.preview import COLORS, INK_ON_COLORS, Piece, Shown
from vl2.data.record import Labelled
from vl2.data.store.parse import Problem

MAX_SIDE_PX = 900  # of a picture in the page
MAX_LABELS = 4  # in a picture
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, items: Sequence[Shown | Problem]) -> str:
    """Return the whole page."""
    style = files("vl2.curate").joinpath("preview.css").read_text(encoding="utf-8")
    cards = "\n".join(_card(item) if isinstance(item, Shown) else _problem(item) for item in items)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{_escape(title)}</h1>
<p class="legend">{len(items)} shown · <span class="t on">trained token</span> <span class="t">not trained</span>
<span class="t special">special token</span> <span class="t visual">visual tokens</span></p>
</header>
<main>
{cards}
</main>
</body>
</html>
"""


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _problem(problem: Problem) -> str:
    return f'<article class="bad"><h2>{_escape(str(problem.place))}</h2><p>{_escape(str(problem))}</p></article>'


def _card(item: Shown) -> str:
    record, counts = item.record, item.counts
    facts = [record.category, record.language, record.source, record.licence]
    chips = "".join(f"<li>{_escape(fact)}</li>" for fact in facts)
    figures = "\n".join(_figure(item, index) for index in range(len(item.images)))
    tokens = "".join(_token(piece, is_odd=bool(number % 2)) for number, piece in enumerate(item.pieces))
    numbers = (
        ("text", counts.text),
        ("trained", counts.trained),
        ("visual", counts.visual),
        ("in all", counts.total),
        ("tiles", counts.tiles),
    )
    table = "".join(f"<div><dt>{name}</dt><dd>{value:,}</dd></div>" for name, value in numbers)
    return f"""<article>
<h2>{_escape(record.id)} <small>{_escape(str(item.place))}</small></h2>
<ul class="facts">{chips}</ul>
<dl>{table}</dl>
<div class="figures">{figures}</div>
<div class="tokens" dir="auto">{tokens}</div>
</article>"""


def _figure(item: Shown, index: int) -> str:
    image, (columns, rows) = item.images[index], item.counts.grids[index]
    labels = list(dict.fromkeys(labelled.label for labelled in item.record.objects))
    boxes = "".join(
        _boxes(labelled, image.size, _colors(labels.index(labelled.label)))
        for labelled in item.record.objects
        if labelled.image == index
    )
    # Many labels in a small picture would hide what they name: they stand below it instead.
    num_boxes = sum(len(labelled.boxes_px) for labelled in item.record.objects if labelled.image == index)
    many = " many" if num_boxes > MAX_LABELS else ""
    key = _key(item, index, labels) if many else ""
    caption = f"image {index} · {image.width} × {image.height} px · {columns} × {rows} tiles"
    return (
        f'<figure><div class="picture{many}"><img alt="image {index}" src="{_data_url(image)}">{boxes}</div>'
        f"<figcaption>{caption}</figcaption>{key}</figure>"
    )


def _key(item: Shown, index: int, labels: Sequence[str]) -> str:
    """Return the labels of a picture in the colours of their boxes."""
    shown = {labelled.label for labelled in item.record.objects if labelled.image == index and labelled.boxes_px}
    marks = (f'<b style="{_colors(labels.index(label))}">{_escape(label)}</b>' for label in labels if label in shown)
    return f'<p class="key">{" ".join(marks)}</p>'


def _colors(number: int) -> str:
    color = number % len(COLORS)
    return f"--box:{COLORS[color]};--ink:{INK_ON_COLORS[color]}"


def _boxes(labelled: Labelled, size: tuple[int, int], colors: str) -> str:
    """Return one element per box, placed in percent of the picture."""
    out = []
    for x0, y0, x1, y1 in labelled.boxes_px:
        left, top = x0 / size[0] * 100, y0 / size[1] * 100
        width, height = (x1 - x0) / size[0] * 100, (y1 - y0) / size[1] * 100
        style = f"left:{left:.3f}%;top:{top:.3f}%;width:{width:.3f}%;height:{height:.3f}%"
        # Near the top edge the label goes inside its box, near the right edge it ends with the box.
        place = " inside" * (top < 6) + " right" * (left > 70)
        label = f'<b class="{place.strip()}">{_escape(labelled.label)}</b>'
        out.append(f'<span class="box" title="{_escape(labelled.label)}" style="{style};{colors}">{label}</span>')
    return "".join(out)


def _data_url(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _token(piece: Piece, *, is_odd: bool) -> str:
    kinds = ["t", *(["on"] * piece.is_trained), *(["special"] * piece.is_special), *(["odd"] * is_odd)]
    if piece.image is not None:
        return f'<span class="t visual">image {piece.image}: {piece.tokens:,} visual tokens</span>'
    several = f' title="{piece.tokens} tokens"' if piece.tokens > 1 else ""
    # A line break is a token too: it shows as a sign, and breaks the line after it.
    text = _escape(piece.text).replace("\n", "<i>↵</i>\n")
    return f'<span class="{" ".join(kinds)}"{several}>{text}</span>'
