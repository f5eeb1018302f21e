"""Render the report as HTML: figures, and samples with images. Gold boxes are solid green, predicted boxes orange."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vl2.errors import UserError
from vl2.eval.interval import Interval
from vl2.eval.public_data import texts
from vl2.eval.score.boxes import our_boxes
from vl2.eval.task import REFUSED, Item, Result
from vl2.html_page import box_style, data_url, in_percent, render
from vl2.process.image import open_image

MAX_SIDE_PX = 560  # of an image on the page
SHOWN_GOLDS = 3
STYLE, SCRIPT = "eval/report.css", "eval/report.js"


@dataclass(frozen=True, kw_only=True)
class ShownResult:
    """A result, and its item if its images can be shown."""

    result: Result
    item: Item | None

    @property
    def has_boxes(self) -> bool:
        gold = self.result.gold
        is_box = isinstance(gold, list) and bool(gold) and isinstance(gold[0], list)
        return is_box and self.item is not None and len(self.item.images) == 1


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One run on the index page."""

    task: str
    title: str
    figure: float
    interval: Interval
    scale: float  # the best possible figure
    items: int
    protocol: str
    paper: str
    note: str


def run_page(
    name: str,
    facts: Mapping[str, str],
    tables: Mapping[str, Mapping[str, float]],
    samples: Sequence[ShownResult],
    *,
    total: int,
    index: str | None,
) -> str:
    """Return the HTML page of one run of `total` items. `tables` are collapsible; `index` links to the index page."""
    cards = [_card(sample) for sample in samples]
    return render(
        "eval/report.jinja",
        title=facts["task"],
        style=STYLE,
        script=SCRIPT,
        name=name,
        facts=facts,
        tables=tables,
        cards=cards,
        kinds=Counter(card.kind for card in cards),
        shown=f"{len(samples)} of {total} samples" if len(samples) < total else f"all {total} samples",
        has_boxes=any(sample.has_boxes for sample in samples),
        index=index,
    )


def index_page(runs: Sequence[IndexRow]) -> str:
    """Return the HTML index page of several runs."""
    return render("eval/report_index.jinja", title="Evaluation", style=STYLE, runs=runs)


@dataclass(frozen=True, kw_only=True)
class _Picture:
    url: str = ""
    width: int = 0
    height: int = 0
    boxes: tuple[tuple[str, str], ...] = ()  # kind and style
    problem: str = ""  # the reason why it cannot be shown


@dataclass(frozen=True, kw_only=True)
class _Card:
    result: Result
    kind: str
    score: str
    pictures: list[_Picture]
    prompt: str
    gold: str
    footer: str


def _card(sample: ShownResult) -> _Card:
    result = sample.result
    kind = "right" if result.score >= 1 else "wrong" if result.score <= 0 else "partly"
    part = f"{result.part} · " if result.part else ""
    ends = {"length": " · cut off", REFUSED: " · could not be asked"}
    tokens = f"{result.prompt_tokens} tokens asked, {result.completion_tokens} answered"
    return _Card(
        result=result,
        kind=kind,
        score="judge" if result.is_undecided else f"{result.score:.2f}" if kind == "partly" else kind,
        pictures=[_picture(image, sample) for image in sample.item.images] if sample.item else [],
        prompt=result.prompt.replace("<image>", "").strip(),
        gold=_gold(result.gold),
        footer=f"{part}{tokens}{ends.get(result.finish_reason, '')}",
    )


def _gold(gold: Any) -> str:
    """Format gold answers in a few lines, with boxes rounded to pixels."""
    if isinstance(gold, list) and gold and isinstance(gold[0], list):
        boxes = ["(" + ", ".join(f"{v:.0f}" for v in box) + ")" for box in gold]
        more = f" and {len(boxes) - SHOWN_GOLDS} more boxes" if len(boxes) > SHOWN_GOLDS else ""
        return " ".join(boxes[:SHOWN_GOLDS]) + more + " in pixels"
    if isinstance(gold, dict):
        return ", ".join(f"{name} {value}" for name, value in gold.items())
    shown = list(dict.fromkeys(texts(gold)))
    separator = "\n" if len(shown) > SHOWN_GOLDS and max(map(len, shown)) > 12 else " | "
    return separator.join(shown)


def _picture(image: Any, sample: ShownResult) -> _Picture:
    try:
        picture = open_image(image)
    except UserError as error:
        return _Picture(problem=str(error))
    boxes = tuple(_boxes(sample, picture.size))
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    url = data_url(picture, max_side_px=MAX_SIDE_PX, quality=82)
    return _Picture(url=url, width=picture.width, height=picture.height, boxes=boxes)


def _boxes(sample: ShownResult, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    if sample.has_boxes:
        for kind, boxes in (("gold", sample.result.gold), ("found", our_boxes(sample.result.answer, size))):
            for box in boxes:
                yield kind, box_style([max(0.0, min(100.0, value)) for value in in_percent(box, size)])
