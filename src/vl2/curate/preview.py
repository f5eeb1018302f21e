"""What a person should see of a record: its pictures with boxes, its tokens as they are trained, its counts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from vl2.data.index import TokenCounts
from vl2.data.record import Record
from vl2.data.store.access import Records
from vl2.data.store.parse import Place, Problem
from vl2.data.stored_image import open_stored
from vl2.errors import UserError
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
