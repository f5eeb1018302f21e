"""Converters of pages in which text and images alternate: WIT and WanJuan, whose images are URLs, and wikiHow."""

from __future__ import annotations

import csv
import gzip
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from vl2.data.json_stream import Row
from vl2.data.raw_files import Json, find_file, find_files, image_file, jsonl_rows
from vl2.data.record import Record, StoredImage
from vl2.datasets.conversion import Conversion, Converted, convert_rows, numbered
from vl2.datasets.fetched_images import FetchedImages
from vl2.datasets.web_sets import OBELICS_FILTERS, fits, interleaved_record
from vl2.errors import UserError

# Of the three captions, the text under the image first: it is written for the page. The attribution comes from the
# image's own page, and may be in another language than the row.
WIT_CAPTIONS = ("caption_reference_description", "caption_alt_text_description")


def read_wit(conversion: Conversion) -> Converted:
    """Read WIT: images of Wikipedia with the text around them, in many languages.

        wit_v1.train.all-00000-of-00010.tsv.gz   language, page_title, section_title, image_url, ...
        images/                                  what img2dataset downloaded (see `FetchedImages`)

    A row becomes a document: title, text of the section (or else of the page), image, caption. Without a caption the
    image comes before the text. Rows whose image was not downloaded are problems.
    """
    files = find_files(conversion.folder, f"wit_v1.{conversion.split}.*.tsv.gz", f"wit_v1.{conversion.split}.*.tsv")
    fetched = FetchedImages(conversion.folder)
    rows = chain.from_iterable(map(_tsv_rows, files))
    return convert_rows(numbered(rows), lambda row: [_wit_record(conversion, fetched, *row)])


def _tsv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a section may be longer than the default limit
    number = 1
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, delimiter="\t"), start=2):
                yield f"{path.name} row {number}", row
    except (OSError, EOFError, UnicodeError, csv.Error) as error:
        yield f"{path.name} row {number}", UserError(f"the file cannot be read: {type(error).__name__}: {error}")


def _wit_record(conversion: Conversion, fetched: FetchedImages, number: int, row: Json) -> Record:
    image = _usable(fetched, row["image_url"])
    if image is None:
        raise UserError("its image was not downloaded, or is too small or too narrow")
    title = ": ".join(filter(None, (row["page_title"], row["section_title"])))
    context = row["context_section_description"] or row["context_page_description"] or ""
    caption = next((row[name] for name in WIT_CAPTIONS if row[name]), "")
    places = [title, context, image, caption] if caption else [title, image, context]
    own = replace(conversion, language=row["language"] or conversion.language)
    return interleaved_record(own, number, _stripped(places))


def _usable(fetched: FetchedImages, url: str) -> StoredImage | None:
    image = fetched.get(url)
    return image if image is not None and fits(image, OBELICS_FILTERS) else None


def _stripped(places: Iterable[str | StoredImage]) -> list[str | StoredImage]:
    texts = (place.strip() if isinstance(place, str) else place for place in places)
    return [place for place in texts if place]


_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
# Counts of words say nothing about Chinese, which has no blanks between them.
CHINESE_FILTERS = replace(
    OBELICS_FILTERS, min_words=1, max_words=sys.maxsize, min_words_per_image=0.0, max_repetition=1.0
)


def read_wanjuan(conversion: Conversion) -> Converted:
    """Read the image-text part of WanJuan 1.0: Chinese web pages in Markdown with their images.

        *.jsonl    id, img_list: [{url, sha256, caption, width, height}], content: "![](url)\\ntext"
        images/    what img2dataset downloaded (see `FetchedImages`)

    Images that are missing or too small are left out of their page; a page without any is a problem.
    """
    files = find_files(conversion.folder, f"{conversion.split}*.jsonl", "*.jsonl")
    fetched = FetchedImages(conversion.folder)
    rows = chain.from_iterable(map(jsonl_rows, files))

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, page = row
        # Splitting at a pattern with one group gives text and URL in turn.
        pieces = _IMAGE.split(page["content"])
        places = [_usable(fetched, piece) if at % 2 else piece for at, piece in enumerate(pieces)]
        kept = _stripped(place for place in places if place is not None)
        yield interleaved_record(conversion, f"{number}-{page['id']}", kept, CHINESE_FILTERS)

    return convert_rows(numbered(rows), make)


# A step is a drawing and some sentences, so a page may have many images and few words for each.
WIKIHOW_FILTERS = replace(OBELICS_FILTERS, max_words=sys.maxsize, min_words_per_image=0.0)


def read_wikihow(conversion: Conversion) -> Converted:
    """Read wikiHow as released for Visual Goal-Step Inference: instructions with a picture for each step.

        WikihowText_data.json      {file_id, goal, goal_description, methods: [{name, steps: [{headline, description,
                                   img, img_license, step_id: "10000798_0_0"}]}]}, one article in each line
        wiki_images/10000798_0_0.png

    Each method becomes a document: goal, its description, the method's name, then a picture and its text for each
    step. A method of more than 30 steps ends at the thirtieth. Steps without a picture keep their text.
    """
    path = find_file(conversion.folder, "WikihowText_data.json")
    return convert_rows(_methods(path), lambda row: [_wikihow_record(conversion, *row)])


def _methods(path: Path) -> Iterator[Row]:
    """Yield each method of each article, as its own row, so that one that cannot be used costs no other."""
    for where, article in jsonl_rows(path):
        methods = article.get("methods") if isinstance(article, dict) else None
        if not isinstance(methods, list) or not methods:
            yield where, article if isinstance(article, UserError) else UserError("not in the layout: no methods")
            continue
        for number, method in enumerate(methods):
            yield f"{where} method {number}", (article, number, method)


def _wikihow_record(conversion: Conversion, article: Json, number: int, method: Json) -> Record:
    head = [article["goal"], article.get("goal_description") or "", method["name"] or ""]
    places: list[str | StoredImage] = ["\n".join(filter(None, map(str.strip, head)))]
    for step in method["steps"][: WIKIHOW_FILTERS.max_images]:
        image = _step_image(conversion, str(step["step_id"]))
        text = " ".join(filter(None, (step["headline"], step.get("description"))))
        places += [text] if image is None else [image, text]
    return interleaved_record(conversion, f"{article['file_id']}-{number}", _stripped(places), WIKIHOW_FILTERS)


def _step_image(conversion: Conversion, step: str) -> StoredImage | None:
    try:
        image = image_file(conversion.folder, f"wiki_images/{step}.png", f"images/{step}.png", f"{step}.png")
    except UserError:
        return None
    return image if fits(image, WIKIHOW_FILTERS) else None
