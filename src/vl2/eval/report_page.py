"""The report as HTML that needs nothing else: pictures inside, every text escaped, a policy that loads nothing.

Gold boxes are drawn green and solid, the answer's orange and dashed.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from PIL import Image

from vl2.errors import UserError
from vl2.eval.interval import Interval
from vl2.eval.rows import texts
from vl2.eval.score.grounding import our_boxes
from vl2.eval.task import REFUSED, Item, Result
from vl2.process.image import open_image

MAX_SIDE_PX = 560  # of a picture in the page
SHOWN_GOLDS = 3
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A result, and its item where there are pictures to show."""

    result: Result
    item: Item | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in the page of several."""

    task: str
    title: str
    figure: float
    interval: Interval
    scale: float  # the best figure there can be
    items: int
    protocol: str
    paper: str
    note: str


def run_page(
    name: str,
    facts: Mapping[str, str],
    tables: Mapping[str, Mapping[str, float]],
    samples: Sequence[Sample],
    *,
    total: int,
    index: str | None,
) -> str:
    """Return the page of one run of `total` items; `tables` can be unfolded, `index` leads to the other runs."""
    counts = {kind: sum(_kind(s.result) == kind for s in samples) for kind in ("wrong", "partly", "right")}
    buttons = "".join(
        f'<button data-kind="{kind}" aria-pressed="false">{kind} <b>{count}</b></button>'
        for kind, count in counts.items()
        if count
    )
    shown = f"{len(samples)} of {total} samples" if len(samples) < total else f"all {total} samples"
    back = f'<a href="{_escape(index)}">all tasks</a>' if index is not None else ""
    has_boxes = any(_has_boxes(sample) for sample in samples)
    legend = '<span class="legend"><i class="gold"></i>gold <i class="found"></i>answer</span>' if has_boxes else ""
    body = f"""<header>
<p class="task"><code>{_escape(name)}</code>{back}</p>
<h1>{_escape(facts["task"])}</h1>
{_facts(facts)}
{"".join(_table(name, figures) for name, figures in tables.items())}
</header>
<nav><span>{shown}, the worst first</span>
<button data-kind="" aria-pressed="true">all <b>{len(samples)}</b></button>{buttons}
<input type="search" placeholder="find in questions and answers" aria-label="find in questions and answers">
{legend}</nav>
<main>
{chr(10).join(_card(sample) for sample in samples)}
</main>
<p class="none" hidden>Nothing matches.</p>"""
    return _page(facts["task"], body, script=True)


def index_page(runs: Sequence[Line]) -> str:
    """Return the page of several runs."""
    lines = "".join(map(_index_row, runs))
    body = f"""<header><h1>Evaluation</h1></header>
<table class="runs"><thead><tr><th>task</th><th>figure and 95 % interval</th><th></th><th>items</th><th>protocol</th>
<th>paper</th></tr></thead>
<tbody>{lines}</tbody></table>"""
    return _page("Evaluation", body, script=False)


def _index_row(run: Line) -> str:
    (low, high), scale = run.interval, run.scale
    note = f"<small>{_escape(run.note)}</small>" if run.note else ""
    bar = (
        f'<span class="bar" role="img" aria-label="{low:.1f} to {high:.1f}">'
        f'<i style="left:{low / scale * 100:.2f}%;width:{max(0.6, (high - low) / scale * 100):.2f}%"></i>'
        f'<b style="left:{run.figure / scale * 100:.2f}%"></b></span>'
    )
    return (
        f'<tr><td><a href="{_escape(run.task)}/report.html">{_escape(run.task)}</a>'
        f"<small>{_escape(run.title)}</small></td>"
        f"<td>{run.figure:.1f} <small>{low:.1f} to {high:.1f}</small></td><td>{bar}</td>"
        f'<td data-name="items">{run.items}</td><td data-name="protocol">{_escape(run.protocol)}</td>'
        f'<td data-name="paper">{_escape(run.paper)}{note}</td></tr>'
    )


def _page(title: str, body: str, *, script: bool) -> str:
    style = files("vl2.eval").joinpath("report.css").read_text(encoding="utf-8")
    code = files("vl2.eval").joinpath("report.js").read_text(encoding="utf-8") if script else ""
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
{body}
{f"<script>{chr(10)}{code}</script>" if script else ""}
</body>
</html>
"""


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _facts(facts: Mapping[str, str]) -> str:
    names = [name for name in facts if name != "task"]
    rows = "".join(
        f"<div{' class=headline' if n == 0 else ''}><dt>{_escape(name)}</dt><dd>{_escape(facts[name])}</dd></div>"
        for n, name in enumerate(names)
    )
    return f"<dl>{rows}</dl>"


def _table(name: str, figures: Mapping[str, float]) -> str:
    rows = "".join(f"<tr><td>{_escape(key)}</td><td>{figure:.1f}</td></tr>" for key, figure in figures.items())
    return f"<details><summary>{len(figures)} {_escape(name)}</summary><table>{rows}</table></details>"


def _kind(result: Result) -> str:
    return "right" if result.score >= 1 else "wrong" if result.score <= 0 else "partly"


def _card(sample: Sample) -> str:
    result = sample.result
    kind = _kind(result)
    score = "judge" if result.is_undecided else f"{result.score:.2f}" if kind == "partly" else kind
    pictures = "".join(_picture(image, sample) for image in sample.item.images) if sample.item else ""
    small = f"{result.part} · " if result.part else ""
    cut = " · cut off" if result.finish_reason == "length" else ""
    cut = " · could not be asked" if result.finish_reason == REFUSED else cut
    return f"""<article data-kind="{kind}">
<h2><span class="score {kind}">{score}</span> {_escape(result.id)}</h2>
<div class="pictures">{pictures}</div>
<p class="prompt" dir="auto">{_escape(result.prompt.replace("<image>", "").strip())}</p>
<dl class="said">
<div><dt>answer</dt><dd dir="auto">{_escape(result.answer) or "<i>nothing</i>"}</dd></div>
<div><dt>gold</dt><dd dir="auto">{_escape(_gold(result.gold))}</dd></div>
{f'<div><dt>read as</dt><dd dir="auto">{_escape(result.read)}</dd></div>' if result.read != result.answer else ""}
</dl>
<footer>{_escape(small)}{result.prompt_tokens} tokens asked, {result.completion_tokens} answered{cut}</footer>
</article>"""


def _gold(gold: Any) -> str:
    """Return gold answers in a few lines; boxes rounded."""
    if isinstance(gold, list) and gold and isinstance(gold[0], list):
        boxes = ["(" + ", ".join(f"{v:.0f}" for v in box) + ")" for box in gold]
        more = f" and {len(boxes) - SHOWN_GOLDS} more boxes" if len(boxes) > SHOWN_GOLDS else ""
        return " ".join(boxes[:SHOWN_GOLDS]) + more + " in pixels"
    if isinstance(gold, dict):
        return ", ".join(f"{name} {value}" for name, value in gold.items())
    shown = list(dict.fromkeys(texts(gold)))
    separator = "\n" if len(shown) > SHOWN_GOLDS and max(map(len, shown)) > 12 else " | "
    return separator.join(shown)


def _picture(image: Any, sample: Sample) -> str:
    try:
        picture = open_image(image)
    except UserError as error:
        return f"<p>{_escape(str(error))}</p>"
    size = picture.size
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    return (
        f'<div class="picture"><img alt="" width="{picture.width}" height="{picture.height}" loading="lazy" '
        f'src="{_data_url(picture)}">{_boxes(sample, size)}</div>'
    )


def _has_boxes(sample: Sample) -> bool:
    gold = sample.result.gold
    is_box = isinstance(gold, list) and bool(gold) and isinstance(gold[0], list)
    return is_box and sample.item is not None and len(sample.item.images) == 1


def _boxes(sample: Sample, size: tuple[int, int]) -> str:
    if not _has_boxes(sample):
        return ""
    gold = sample.result.gold
    found = our_boxes(sample.result.answer, size)
    return "".join(_box(box, size, "gold") for box in gold) + "".join(_box(box, size, "found") for box in found)


def _box(box: Sequence[float], size: tuple[int, int], kind: str) -> str:
    x0, y0, x1, y1 = (max(0.0, min(100.0, v / s * 100)) for v, s in zip(box, size * 2, strict=True))
    style = f"left:{x0:.2f}%;top:{y0:.2f}%;width:{x1 - x0:.2f}%;height:{y1 - y0:.2f}%"
    return f'<span class="box {kind}" style="{style}"></span>'


def _data_url(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
