"""Converters of captions and answers whose phrases have boxes: GRIT, Groma, All-Seeing and Flickr30k Entities."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from vl2.data.json_stream import Row, list_rows
from vl2.data.raw_files import (
    Json,
    find_file,
    find_files,
    image_bytes,
    image_file,
    parquet_rows,
    read_text,
    tar_samples,
)
from vl2.data.record import BoxPx, Labeled, Record, StoredImage
from vl2.datasets.box_questions import (
    Query,
    box_of_fractions,
    box_of_xywh,
    check_size,
    clip_box,
    grounded_caption,
    locate_records,
)
from vl2.datasets.conversation_sets import to_messages
from vl2.datasets.conversion import Conversion, Converted, convert_rows, numbered
from vl2.datasets.question_answers import Turn, converse, record
from vl2.errors import UserError
from vl2.process.tiling import Size

Span = tuple[int, int]


def read_grit(conversion: Conversion) -> Converted:
    """Read GRIT: web images with captions whose phrases have boxes from a detector, not verified by people.

        coyo_0_snappy.parquet   key, caption, noun_chunks, ref_exps, ... and images/{key}.jpg or {key[:5]}/{key}.jpg
        00000.tar               the same, written by img2dataset: {key}.jpg and {key}.json with those fields

    `noun_chunks` and `ref_exps` are [start, end, x0, y0, x1, y1, score]: characters of the caption, then fractions of
    the image's sides. Noun chunks give a grounded caption, referring expressions give queries. Most objects of an
    image have no boxes, so there are no queries for absent ones.
    """
    files = find_files(conversion.folder, "*.tar", "*.parquet")
    if files[0].suffix == ".tar":
        rows: Iterator[Row] = chain.from_iterable(map(tar_samples, files))
        return convert_rows(rows, lambda sample: _grit_records(conversion, *_grit_of_sample(sample)))
    rows = parquet_rows(files, ("key", "caption", "noun_chunks", "ref_exps"))
    return convert_rows(rows, lambda row: _grit_records(conversion, row, _grit_file(conversion, str(row["key"]))))


def _grit_of_sample(sample: dict[str, bytes]) -> tuple[Json, StoredImage]:
    row = json.loads(sample[".json"])
    return row, image_bytes(sample[".jpg"], str(row["key"]))


def _grit_file(conversion: Conversion, key: str) -> StoredImage:
    return image_file(conversion.folder, f"images/{key}.jpg", f"{key[:5]}/{key}.jpg", f"{key}.jpg")


def _grit_records(conversion: Conversion, row: Json, image: StoredImage) -> Iterator[Record]:
    caption, size = row["caption"], (image.width, image.height)
    chunks = phrases(caption, row["noun_chunks"], size)
    yield grounded_caption(conversion, row["key"], image, _pieces(caption, chunks))
    expressions = phrases(caption, row["ref_exps"], size).values()
    yield from locate_records(conversion, f"{row['key']}-phrases", image, list(expressions))


def phrases(caption: str, found: Sequence[Sequence[float]], size: Size) -> dict[Span, Query]:
    """Return the boxes of each span of the caption, as queries by span."""
    boxes = defaultdict(list)
    for start, end, x0, y0, x1, y1, *_ in found:
        boxes[int(start), int(end)].append(box_of_fractions((x0, y0, x1, y1), size))
    return {
        (start, end): Query(label=caption[start:end].strip(), boxes_px=tuple(boxes[start, end]))
        for start, end in sorted(boxes)
    }


def _pieces(caption: str, chunks: dict[Span, Query]) -> list[str | Query]:
    """Split the caption at its chunks. A chunk that overlaps the one before it stays text."""
    pieces: list[str | Query] = []
    position = 0
    for (start, end), query in chunks.items():
        if start >= position:
            pieces += [caption[position:start], query]
            position = end
    return [*pieces, caption[position:]]


_GROMA_PHRASE = re.compile(r"<p>\s*(?P<phrase>.*?)\s*</p>(\s*<roi>(?P<boxes>(\s*<ground_box>)+)\s*</roi>)?", re.DOTALL)
_GROMA_TAG = re.compile(r"</?(p|roi|region|image|img)>|<(ground_box|refer_box|refer_feat|r\d+)>")


def read_groma(conversion: Conversion) -> Converted:
    """Read Groma Instruct: conversations about images of Visual Genome, whose answers ground their phrases.

        groma_instruct.json   [{file_name, width, height, boxes: [[left, top, width, height]],
                                conversation: [{from, value: "<p> a dog </p> <roi> <ground_box> </roi>", box_inds}]}]
        images/2354786.jpg    (or VG_100K/ and VG_100K_2/)

    `box_inds` says which of the boxes the answer's <ground_box> stand for, in order. Phrases without boxes stay text.
    """
    path = find_file(conversion.folder, "groma_instruct*.json", f"{conversion.split}.json")
    return convert_rows(numbered(list_rows(path)), lambda row: [_groma_record(conversion, *row)])


def _groma_record(conversion: Conversion, number: int, row: Json) -> Record:
    name = row["file_name"]
    image = image_file(conversion.folder, *(f"{folder}{name}" for folder in ("images/", "VG_100K/", "VG_100K_2/", "")))
    check_size(row, image)
    boxes = [box_of_xywh(box, (image.width, image.height)) for box in row["boxes"]]
    turns = row["conversation"]
    if len(turns) % 2:
        raise UserError(f"a conversation must have as many answers as questions, got {len(turns)} turns")
    objects: list[Labeled] = []
    asked: list[Turn] = []
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        if _GROMA_TAG.search(question["value"]):
            raise UserError(f"a question must not refer to regions, got {question['value']!r:.80}")
        text = _groma_answer(answer["value"], [boxes[i] for i in answer["box_inds"] or ()], objects)
        asked.append((f"<|grounding|>{question['value'].strip()}", text))
    return converse(conversion, number, asked, [image], objects=objects)


def _groma_answer(value: str, boxes: Sequence[BoxPx], objects: list[Labeled]) -> str:
    """Return an answer with `{box:k}` for its grounded phrases, which are added to `objects`."""
    rest = list(boxes)

    def written(match: re.Match[str]) -> str:
        count = (match["boxes"] or "").count("<ground_box>")
        if count > len(rest):
            raise UserError(f"the answer has more <ground_box> than the {len(boxes)} in box_inds")
        if not count:
            return match["phrase"]
        objects.append(Labeled(image=0, label=match["phrase"], boxes_px=tuple(rest[:count])))
        del rest[:count]
        return f"{{box:{len(objects) - 1}}}"

    text = _GROMA_PHRASE.sub(written, value)
    if rest or _GROMA_TAG.search(text):
        raise UserError(f"the answer's <ground_box> are not the {len(boxes)} in box_inds: {value!r:.80}")
    return text


_MARKED = re.compile(r"<(?P<kind>ref|pred)>(?P<phrase>.*?)</(?P=kind)>(?P<boxes>(\s*<box>.*?</box>)*)", re.DOTALL)
_MARKED_BOXES = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_MARK = re.compile(r"</?(ref|pred|box)>")
_ALL_SEEING_SCALE = 999  # the coordinate of the right and the lower edge, as in the authors' program that draws boxes


def read_all_seeing(conversion: Conversion) -> Converted:
    """Read All-Seeing V2, and the part of AS-1B released in the same layout: conversations with marked regions.

        rec_detailed_description_42k.json, as_pretrain_10m.json, ...
            [{id, image, conversations: [{from: human, value: "<image>\\nWhat is <ref>this</ref><box>[[..]]</box>?"},
                {from: gpt, value: "A <ref>cat</ref><box>[[290, 202, 835, 851]]</box> <pred>on</pred><box>.."}]}]

    Coordinates are 0..999 of the image padded to a square, with the image in the middle: the authors' programs pad
    each image and leave the boxes as they are. A phrase keeps its boxes in questions and answers. A predicate stays
    text, because its two lists of boxes repeat those of its subject and object.
    """
    path = find_file(conversion.folder, f"{conversion.split}.json", "*.json")
    return convert_rows(numbered(list_rows(path)), lambda row: [_all_seeing_record(conversion, *row)])


def _all_seeing_record(conversion: Conversion, number: int, row: Json) -> Record:
    image = image_file(conversion.folder, row["image"], f"images/{row['image']}")
    objects: list[Labeled] = []
    turns: list[Json] = []
    for turn in row["conversations"]:
        count = len(objects)
        text = _without_marks(turn["value"], (image.width, image.height), objects)
        if turn["from"] == "gpt" and len(objects) > count and turns:
            turns[-1]["value"] = _asking_for_boxes(turns[-1]["value"])
        turns.append({"from": turn["from"], "value": text})
    id = f"{number}-{row['id']}" if row.get("id") is not None else number
    return record(conversion, id, to_messages(turns, 1), [image], objects=objects)


def _asking_for_boxes(question: str) -> str:
    before, tag, after = question.rpartition("<image>")
    return f"{before}{tag}<|grounding|>{after.strip()}"


def _of_padded_square(box: Sequence[float], size: Size) -> BoxPx:
    """Convert a box (x0, y0, x1, y1) in 0..999 of the square that the image was padded to."""
    side = max(size)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    x0, y0, x1, y1 = (value / _ALL_SEEING_SCALE * side for value in box)
    return clip_box((x0 - left, y0 - top, x1 - left, y1 - top), size)


def _without_marks(value: str, size: Size, objects: list[Labeled]) -> str:
    """Return a text with `{box:k}` for its marked phrases with boxes, which are added to `objects`."""

    def written(match: re.Match[str]) -> str:
        phrase = match["phrase"].strip()
        lists = _MARKED_BOXES.findall(match["boxes"])
        if match["kind"] == "pred" or not lists:
            return phrase
        boxes = [box for found in lists for box in json.loads(found)]
        objects.append(Labeled(image=0, label=phrase, boxes_px=tuple(_of_padded_square(box, size) for box in boxes)))
        return f"{{box:{len(objects) - 1}}}"

    text = _MARKED.sub(written, value)
    if _MARK.search(text):
        raise UserError(f"a <box> must follow a <ref> or <pred>: {value!r:.80}")
    return text


MAX_XML_BYTES = 1_000_000

_PHRASE = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]+)\]")


def read_flickr30k_entities(conversion: Conversion) -> Converted:
    """Read Flickr30k Entities: captions whose phrases are linked to boxes.

        train.txt                 image ids, one per line
        Sentences/36979.txt       five lines: A [/EN#1/people group of friends] ... (EN#0 is not visual)
        Annotations/36979.xml     size, and objects: names (entity ids), and a bndbox, or nobndbox, or scene
        flickr30k-images/36979.jpg

    Every caption becomes a grounded caption, and the phrases with boxes become queries. Not every object of an image
    has a box, so there are no queries for absent ones.
    """
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
                asked[query.label.lower()] = _with_boxes_of(query, asked.get(query.label.lower()))
        yield from locate_records(conversion, f"{id}-phrases", image, list(asked.values()))

    return convert_rows([(f"image {id}", id) for id in ids], make)


def _with_boxes_of(query: Query, earlier: Query | None) -> Query:
    """Add the boxes of an equal earlier phrase: "a man" may refer to different men in different captions."""
    known = earlier.boxes_px if earlier is not None else ()
    return Query(label=query.label, boxes_px=tuple(dict.fromkeys((*known, *query.boxes_px))))


def sentence_pieces(sentence: str, boxes: dict[str, list[BoxPx]]) -> list[str | Query]:
    """Split a sentence into text and phrases. A phrase without boxes becomes a query without boxes."""
    pieces: list[str | Query] = []
    end = 0
    for match in _PHRASE.finditer(sentence):
        pieces += [sentence[end : match.start()], Query(label=match[2], boxes_px=tuple(boxes.get(match[1], ())))]
        end = match.end()
    return [*pieces, sentence[end:]]


def entity_boxes(path: Path, image: StoredImage) -> dict[str, list[BoxPx]]:
    """Return the boxes of each entity id.

    Raise UserError if the file declares a document type or entities, which could exhaust memory ("billion laughs").
    """
    if path.is_file() and path.stat().st_size > MAX_XML_BYTES:
        raise UserError(f"{path.name} is over {MAX_XML_BYTES} bytes")
    # Parse text, not bytes: otherwise the file could choose an encoding that hides a declaration from this search.
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
