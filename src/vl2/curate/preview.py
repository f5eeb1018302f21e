"""Show records to a person: pictures with boxes, tokens as they are trained and counts, as data or as an HTML page."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from vl2.data.index import TokenCounts
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
    """Neighbouring tokens that are shown as one: a token, several that make one character, or an image's slots."""

    text: str
    tokens: int
    is_trained: bool
    is_special: bool = False
    image: int | None = None  # of visual tokens


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One record ready to be drawn."""

    record: Record
    place: Place
    images: tuple[Image.Image, ...]
    pieces: tuple[Piece, ...]
    counts: TokenCounts


def choose(records: Records, processor: Processor, *, count: int, seed: int) -> list[Shown | Problem]:
    """Draw records at random, without repeating one, in the order in which they lie."""
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    chosen = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
    return [show(records, index, processor) for index in chosen]


def show(records: Records, index: int, processor: Processor) -> Shown | Problem:
    """Return a record ready to be drawn, or what prevents it."""
    found = records.find(index)
    if isinstance(found, Problem):
        return found
    record = found.record
    try:
        images = tuple(open_stored(image) for image in record.images)
        sample = processor.encode(record.to_turns(images), train=True, name=record.id)
    except UserError as error:
        return Problem(place=found.place, id=record.id, kind="encode", why=str(error))
    return Shown(
        record=record,
        place=found.place,
        images=images,
        pieces=tuple(split_pieces(sample, processor.tokenizer)),
        counts=TokenCounts.of_sample(sample),
    )


def split_pieces(sample: Sample, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield what the tokens say, in order; the pieces' tokens sum to the sample's length."""
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


MAX_SIDE_PX = 900  # of a picture in the page
MAX_LABELS = 4  # in a picture


def page(title: str, items: Sequence[Shown | Problem]) -> str:
    """Return the whole page."""
    return render(
        "curate/preview.jinja",
        title=title,
        style="curate/preview.css",
        items=items,
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
    names: list[tuple[str, str]]  # labels with their colors, below a picture that has too many to stand in it


def _facts(record: Record) -> tuple[str, ...]:
    return record.category, record.language, record.source, record.licence


def _counts(item: Shown) -> tuple[tuple[str, int], ...]:
    counts = item.counts
    return (
        ("text", counts.text),
        ("trained", counts.trained),
        ("visual", counts.visual),
        ("in all", counts.total),
        ("tiles", counts.tiles),
    )


def _figures(item: Shown) -> Iterator[_Figure]:
    labels = list(dict.fromkeys(labelled.label for labelled in item.record.objects))
    colors = {label: _colors(number) for number, label in enumerate(labels)}
    for index, (image, (columns, rows)) in enumerate(zip(item.images, item.counts.grids, strict=True)):
        boxes = [
            _drawn(labelled.label, box, image.size, colors[labelled.label])
            for labelled in item.record.objects
            if labelled.image == index
            for box in labelled.boxes_px
        ]
        # Many labels in a small picture would hide what they name: they stand below it instead.
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
    # Near the top edge the label goes inside its box, near the right edge it ends with the box.
    place = " ".join(["inside"] * (percent[1] < 6) + ["right"] * (percent[0] > 70))
    return _DrawnBox(label=label, style=f"{box_style(percent, digits=3)};{colors}", place=place)
