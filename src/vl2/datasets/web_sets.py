"""Converters of web data: captioned images, OBELICS (pages of text and images), PubTabNet and WebSight (HTML)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from vl2.data.raw_files import (
    IMAGE_ENDINGS,
    Json,
    find_file,
    find_files,
    image_bytes,
    image_file,
    jsonl_rows,
    parquet_files,
    parquet_rows,
    tar_samples,
)
from vl2.data.record import Message, Part, Record, StoredImage
from vl2.datasets.conversion import Conversion, Converted, convert_rows, numbered, rows_of_split
from vl2.datasets.fetched_images import FetchedImages
from vl2.datasets.question_answers import DESCRIBE, DESCRIBE_IN_DETAIL, PAGE_TO_HTML, TABLE_TO_HTML, converse, record
from vl2.errors import UserError

CAPTION_KEYS = ("vlm_caption", "long_caption", "caption", "text")
LONG_CAPTION = 200  # characters; for longer captions the question asks for detail


def read_captioned(conversion: Conversion) -> Converted:
    """Read images with captions as downloaded by img2dataset, for the large caption datasets that are lists of URLs.

        00000.tar   {key}.jpg, {key}.txt (the caption), {key}.json (with the columns of --save_additional_columns)

    If the JSON has several captions, the first of CAPTION_KEYS is used: a written caption rather than the alternative
    text of the web page.
    """
    files = find_files(conversion.folder, f"{conversion.split}/*.tar", "*.tar")
    samples = chain.from_iterable(map(tar_samples, files))
    rows = ((where, row if isinstance(row, UserError) else (where, row)) for where, row in samples)

    def make(row: tuple[str, dict[str, bytes]]) -> Iterator[Record]:
        where, sample = row
        id = where.replace(".tar ", "-")
        ending = next((e for e in IMAGE_ENDINGS if e in sample), None)
        if ending is None:
            raise UserError(f"no image: the sample has {', '.join(sample)}")
        caption = _richest_caption(sample)
        prompts = DESCRIBE_IN_DETAIL if len(caption) > LONG_CAPTION else DESCRIBE
        yield converse(
            conversion, id, [(conversion.random(id).choice(prompts), caption)], [image_bytes(sample[ending], id)]
        )

    return convert_rows(rows, make)


def _richest_caption(sample: dict[str, bytes]) -> str:
    fields = json.loads(sample.get(".json", b"{}"))
    found = next((fields[key] for key in CAPTION_KEYS if fields.get(key)), None)
    return str(found) if found is not None else sample.get(".txt", b"").decode()


@dataclass(frozen=True, kw_only=True)
class ObelicsFilters:
    """The conditions that the images of a page, and then the page, must meet.

    Except for `min_words_per_image`, which is our choice, the values are those of OBELICS itself
    (obelisc/configs/config_filter_web_documents.yaml of huggingface/OBELICS). A page may fail them when images that
    can no longer be downloaded are missing.
    """

    min_side_px: int = 150
    max_side_px: int = 20_000
    max_aspect: float = 2.0  # the longer side over the shorter
    max_images: int = 30
    min_words: int = 10  # in the page
    max_words: int = 2_000
    min_words_per_image: float = 5.0  # pages with hardly any text teach nothing about their images
    max_repetition: float = 0.2  # share of 5-word sequences that occur more than once


OBELICS_FILTERS = ObelicsFilters()


def read_obelics(conversion: Conversion) -> Converted:
    """Read OBELICS: web pages of interleaved text and images, filtered by `ObelicsFilters`.

        *.parquet   images: [url or null], texts: [text or null], aligned: one of the two at each position;
                    metadata: JSON list beside them; general_metadata: JSON with the page's URL
        images/00000/000000000.jpg and images/00000.parquet (url, key, status), as img2dataset downloads the URLs

    An entry of `images` may also be bytes. Images that are missing or filtered out are left out of their page. A page
    becomes a document, so all its text is trained on.
    """
    files = find_files(
        conversion.folder, f"{conversion.split}-*.parquet", f"data/{conversion.split}-*.parquet", "*.parquet"
    )
    fetched = FetchedImages(conversion.folder)
    rows = parquet_rows(files, ("images", "texts"))

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, page = row
        places = zip(page["images"], page["texts"], strict=True)
        kept = [text or _obelics_image(image, fetched) for image, text in places if text or image]
        yield interleaved_record(conversion, number, [place for place in kept if place is not None])

    return convert_rows(numbered(rows), make)


def _obelics_image(value: Any, fetched: FetchedImages) -> StoredImage | None:
    """Return an image, or None if it is missing, cannot be read or fails the filters."""
    try:
        image = fetched.get(value) if isinstance(value, str) else image_bytes(value, "of the page")
    except UserError:
        return None
    return image if image is not None and fits(image, OBELICS_FILTERS) else None


def fits(image: StoredImage, filters: ObelicsFilters) -> bool:
    short, long = sorted((image.width, image.height))
    return filters.min_side_px <= short and long <= filters.max_side_px and long <= filters.max_aspect * short


def repetition(words: Sequence[str], run: int = 5) -> float:
    """Return the share of sequences of `run` words that occur more than once."""
    counts = Counter(tuple(words[i : i + run]) for i in range(len(words) - run + 1))
    total = sum(counts.values())
    return sum(n for n in counts.values() if n > 1) / total if total else 0.0


def interleaved_record(
    conversion: Conversion, id: object, places: Sequence[str | StoredImage], filters: ObelicsFilters = OBELICS_FILTERS
) -> Record:
    """Return a page as a document with a blank line between its parts. Raise UserError if it fails a filter."""
    # No text follows the images at the end, so nothing is learned from them.
    while places and isinstance(places[-1], StoredImage):
        places = places[:-1]
    images = [place for place in places if isinstance(place, StoredImage)]
    words = " ".join(place for place in places if isinstance(place, str)).split()
    if not 1 <= len(images) <= filters.max_images:
        raise UserError(f"filtered: {len(images)} images, 1 to {filters.max_images} are allowed")
    if not filters.min_words <= len(words) <= filters.max_words:
        raise UserError(f"filtered: {len(words)} words, {filters.min_words} to {filters.max_words} are allowed")
    if len(words) < filters.min_words_per_image * len(images):
        raise UserError(f"filtered: {len(words)} words for {len(images)} images")
    if (share := repetition(words)) > filters.max_repetition:
        raise UserError(f"filtered: {share:.0%} of the text repeats itself")
    return record(conversion, id, [Message(role="document", parts=tuple(_parts(places)))], images)


def _parts(places: Sequence[str | StoredImage]) -> Iterator[Part]:
    """Yield the parts of a document. The blank lines are part of the texts, because a document is encoded verbatim."""
    num_images = 0
    for number, place in enumerate(places):
        if isinstance(place, str):
            yield Part(text=place if number == len(places) - 1 else f"{place}\n\n")
        else:
            yield Part(image=num_images)
            num_images += 1
            yield Part(text="\n\n")


def read_pubtabnet(conversion: Conversion) -> Converted:
    """Read PubTabNet: images of tables with their HTML.

    PubTabNet_2.0.0.jsonl   {filename, split, html: {structure: {tokens}, cells: [{tokens}]}}
    train/PMC1064074_007_00.png
    """

    def make(row: Json) -> Iterator[Record]:
        name = row["filename"]
        image = image_file(conversion.folder, f"{conversion.split}/{name}")
        cells = [cell["tokens"] for cell in row["html"]["cells"]]
        html = table_html(row["html"]["structure"]["tokens"], cells)
        yield converse(
            conversion, name.rsplit(".", 1)[0], [(conversion.random(name).choice(TABLE_TO_HTML), html)], [image]
        )

    rows = jsonl_rows(find_file(conversion.folder, "PubTabNet*.jsonl"))
    return convert_rows(rows_of_split(rows, "split", conversion.split), make)


def table_html(structure: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Insert the cells into the structure's `<td>` tags. Raise UserError if their numbers differ."""
    places = structure.count("</td>")
    if places != len(cells):
        raise UserError(f"the table has {places} places for {len(cells)} cells")
    rest = iter(cells)
    pieces = ["".join(next(rest)) + tag if tag == "</td>" else tag for tag in structure]
    return f"<table>{''.join(pieces)}</table>"


def read_websight(conversion: Conversion) -> Converted:
    """Read WebSight: screenshots of synthetic web pages with their HTML.

    data/train-00000-of-00738-*.parquet   image: {bytes, path}, text (the HTML)
    """
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), ("image", "text"))

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, page = row
        image = image_bytes(page["image"], f"of row {number}")
        yield converse(conversion, number, [(conversion.random(number).choice(PAGE_TO_HTML), page["text"])], [image])

    return convert_rows(numbered(rows), make)
