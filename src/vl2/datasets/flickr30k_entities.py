"""Flickr30k Entities: captions whose phrases are tied to boxes.

    train.txt                 image ids, one a line
    Sentences/36979.txt       five lines: A [/EN#1/people group of friends] ... (EN#0 is not visual)
    Annotations/36979.xml     size, and objects: names (entity ids), and a bndbox, or nobndbox, or scene
    flickr30k-images/36979.jpg

Every caption becomes a grounded caption, and the phrases that have boxes become queries. Boxes are not known for
everything in an image, so nothing is said to be absent.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vl2.data.raw_files import find_file, image_file, read_text
from vl2.data.record import BoxPx, Record, StoredImage
from vl2.datasets.boxes import Query, check_size, clip_box, grounded_caption, locate_records
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.errors import UserError

MAX_XML_BYTES = 1_000_000

_PHRASE = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]+)\]")


def read(conversion: Conversion) -> Converted:
    ids = read_text(find_file(conversion.folder, f"{conversion.split}.txt")).split()

    def make(id: str) -> Iterator[Record]:
        image = image_file(
            conversion.folder, f"flickr30k-images/{id}.jpg", f"flickr30k_images/{id}.jpg", f"images/{id}.jpg"
        )
        boxes = entity_boxes(conversion.folder / "Annotations" / f"{id}.xml", image)
        sentences = read_text(conversion.folder / "Sentences" / f"{id}.txt").splitlines()
        asked: dict[str, Query] = {}
        for number, sentence in enumerate(filter(None, map(str.strip, sentences))):
            pieces = sentence_pieces(sentence, boxes)
            queries = [piece for piece in pieces if isinstance(piece, Query) and piece.boxes_px]
            if queries:
                yield grounded_caption(conversion, f"{id}-{number}", image, pieces)
            for query in queries:
                asked[query.label.lower()] = _joined(query, asked.get(query.label.lower()))
        yield from locate_records(conversion, f"{id}-phrases", image, list(asked.values()))

    return each([(f"image {id}", id) for id in ids], make)


def _joined(query: Query, earlier: Query | None) -> Query:
    """Add the boxes of an earlier phrase: "a man" of one caption may be another one than "a man" of the next."""
    known = earlier.boxes_px if earlier is not None else ()
    return Query(label=query.label, boxes_px=tuple(dict.fromkeys((*known, *query.boxes_px))))


def sentence_pieces(sentence: str, boxes: dict[str, list[BoxPx]]) -> list[str | Query]:
    """Cut a sentence into text and phrases; a phrase without boxes is a query with none."""
    pieces: list[str | Query] = []
    end = 0
    for match in _PHRASE.finditer(sentence):
        pieces += [sentence[end : match.start()], Query(label=match[2], boxes_px=tuple(boxes.get(match[1], ())))]
        end = match.end()
    return [*pieces, sentence[end:]]


def entity_boxes(path: Path, image: StoredImage) -> dict[str, list[BoxPx]]:
    """Return the boxes of each entity id. UserError for a file that declares entities or a type of its own."""
    if path.is_file() and path.stat().st_size > MAX_XML_BYTES:
        raise UserError(f"{path.name} is over {MAX_XML_BYTES} bytes")
    # As text, not bytes: then the file cannot choose an encoding that hides a declaration from the search.
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path.name} declares entities, which are not read")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise UserError(f"{path.name} is not valid XML: {error}") from None
    check_size({side.tag: float(side.text or "nan") for side in root.findall("size/*") if side.tag != "depth"}, image)
    boxes: dict[str, list[BoxPx]] = defaultdict(list)
    for found in root.iter("object"):
        corners = found.find("bndbox")
        if corners is not None:
            values = [float(corners.findtext(name, "nan")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for name in found.iter("name"):
                boxes[(name.text or "").strip()].append(clip_box(values, (image.width, image.height)))
    return boxes
