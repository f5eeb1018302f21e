"""Preview records: images with boxes, tokens with their training mask, and counts, as data or as an HTML page."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vl2.curate.diversity import COLUMNS as DIVERSITY_COLUMNS
from vl2.curate.diversity import Diversity, as_rows
from vl2.data.index import TokenCounts
from vl2.data.pack import Packing
from vl2.data.pack_fill import PackFill
from vl2.data.record import Record
from vl2.data.store.access import Records
from vl2.data.store.entry import Place, Problem
from vl2.data.stored_image import open_stored
from vl2.errors import UserError
from vl2.html_page import box_style, data_url, in_percent, render
from vl2.process.processor import Processor
from vl2.process.sample import IGNORE_ID, Sample
from vl2.process.tokenizer import Tokenizer

COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")  # Okabe, Ito (2008)
INK_ON_COLORS = ("#fff", "#fff", "#fff", "#000", "#000", "#000", "#000", "#fff")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive tokens shown as one: a token, several tokens of one character, or all visual tokens of an image."""

    text: str
    tokens: int
    is_trained: bool
    is_special: bool = False
    image: int | None = None  # the image's index, for visual tokens


@dataclass(frozen=True, kw_only=True)
class PreviewItem:
    """A record with everything that a preview shows."""

    record: Record
    place: Place
    images: tuple[Image.Image, ...]
    pieces: tuple[Piece, ...]
    counts: TokenCounts


def choose(records: Records, processor: Processor, *, count: int, seed: int) -> list[PreviewItem | Problem]:
    """Choose records at random without replacement, and return them in store order."""
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    chosen = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
    return [show(records, index, processor) for index in chosen]


def pack_fill(items: Sequence[PreviewItem | Problem]) -> PackFill | None:
    """Return how full packs of such records would be, or None without a record that fits into one."""
    counts = [item.counts for item in items if isinstance(item, PreviewItem)]
    tokens = np.array([one.total for one in counts], dtype=np.int64)
    return PackFill.estimate(tokens, np.array([one.tiles for one in counts], dtype=np.int64), Packing())


def show(records: Records, index: int, processor: Processor) -> PreviewItem | Problem:
    """Return the preview of a record, or the problem that prevents it."""
    found = records.find(index)
    if isinstance(found, Problem):
        return found
    record = found.record
    try:
        images = tuple(open_stored(image) for image in record.images)
        sample = processor.encode(record.to_turns(images), train=True, name=record.id)
    except UserError as error:
        return Problem(place=found.place, id=record.id, kind="encode", why=str(error))
    return PreviewItem(
        record=record,
        place=found.place,
        images=images,
        pieces=tuple(split_pieces(sample, processor.tokenizer)),
        counts=TokenCounts.of_sample(sample),
    )


def split_pieces(sample: Sample, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the tokens of a sample as pieces of text, in order. Their token counts add up to its length."""
    specials = {token: text for text, token in tokenizer.special_ids.items()}
    stream = tokenizer.stream(skip_special=False)
    lengths = [sample.layout.num_tokens(grid) for grid in sample.grid_list]
    waiting = 0  # tokens whose character is not complete yet
    visual = image = 0
    was_trained = False
    rows = zip(sample.input_ids.tolist(), sample.labels.tolist(), sample.image_mask.tolist(), strict=True)
    for position, (token, label, is_visual) in enumerate(rows):
        is_trained = label != IGNORE_ID and position > 0
        if waiting and (is_visual or token in specials or is_trained != was_trained):
            yield Piece(text=stream.flush(), tokens=waiting, is_trained=was_trained)
            waiting = 0
        was_trained = is_trained
        if is_visual:
            visual += 1
            if visual == lengths[image]:
                yield Piece(text="", tokens=visual, is_trained=False, is_special=True, image=image)
                visual, image = 0, image + 1
            continue
        if token in specials:
            yield Piece(text=specials[token], tokens=1, is_trained=is_trained, is_special=True)
            continue
        waiting += 1
        if text := stream.push(token):
            yield Piece(text=text, tokens=waiting, is_trained=is_trained)
            waiting = 0
    if waiting:
        yield Piece(text=stream.flush(), tokens=waiting, is_trained=was_trained)


MAX_SIDE_PX = 900  # of an image on the page
MAX_LABELS = 4  # labels drawn on an image


def page(title: str, items: Sequence[PreviewItem | Problem], measured: Sequence[Diversity] = ()) -> str:
    """Return the HTML page. `measured` has how varied each source is."""
    return render(
        "curate/preview.jinja",
        title=title,
        style="curate/preview.css",
        items=items,
        columns=DIVERSITY_COLUMNS,
        rows=as_rows(measured),
        warnings=[warning for each in measured for warning in each.warnings()],
        is_problem=lambda item: isinstance(item, Problem),
        facts=_facts,
        counts=_counts,
        figures=_figures,
    )


@dataclass(frozen=True, kw_only=True)
class _DrawnBox:
    label: str
    style: str
    place: str  # of the label


@dataclass(frozen=True, kw_only=True)
class _Figure:
    url: str
    caption: str
    boxes: list[_DrawnBox]
    names: list[tuple[str, str]]  # labels with their colors, listed below an image that has too many labels


def _facts(record: Record) -> tuple[str, ...]:
    return record.category, record.language, record.source, record.licence


def _counts(item: PreviewItem) -> tuple[tuple[str, int], ...]:
    counts = item.counts
    return (
        ("text", counts.text),
        ("trained", counts.trained),
        ("visual", counts.visual),
        ("in all", counts.total),
        ("tiles", counts.tiles),
    )


def _figures(item: PreviewItem) -> Iterator[_Figure]:
    labels = list(dict.fromkeys(labeled.label for labeled in item.record.objects))
    colors = {label: _colors(number) for number, label in enumerate(labels)}
    for index, (image, (columns, rows)) in enumerate(zip(item.images, item.counts.grids, strict=True)):
        boxes = [
            _drawn(labeled.label, box, image.size, colors[labeled.label])
            for labeled in item.record.objects
            if labeled.image == index
            for box in labeled.boxes_px
        ]
        # Many labels on a small image would hide the objects, so they are listed below it.
        shown = {box.label for box in boxes} if len(boxes) > MAX_LABELS else set()
        yield _Figure(
            url=data_url(image, max_side_px=MAX_SIDE_PX, quality=85),
            caption=f"image {index} · {image.width} × {image.height} px · {columns} × {rows} tiles",
            boxes=boxes,
            names=[(label, colors[label]) for label in labels if label in shown],
        )


def _colors(number: int) -> str:
    color = number % len(COLORS)
    return f"--box:{COLORS[color]};--ink:{INK_ON_COLORS[color]}"


def _drawn(label: str, box: Sequence[float], size: tuple[int, int], colors: str) -> _DrawnBox:
    percent = in_percent(box, size)
    # Near the top edge the label goes inside the box; near the right edge it is right-aligned.
    place = " ".join(["inside"] * (percent[1] < 6) + ["right"] * (percent[0] > 70))
    return _DrawnBox(label=label, style=f"{box_style(percent, digits=3)};{colors}", place=place)
