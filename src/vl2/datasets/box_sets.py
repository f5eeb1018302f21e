"""Converters of datasets with labeled boxes: BCCD and playing cards, WaveUI, RefCOCO."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from vl2.data.disk_index import DiskIndex
from vl2.data.json_stream import Row, list_rows
from vl2.data.plain_pickle import read_plain_pickle
from vl2.data.raw_files import Json, find_file, image_bytes, image_file, parquet_files, parquet_rows
from vl2.data.record import BoxPx, Record
from vl2.datasets.box_questions import Query, absent_queries, box_of_xywh, check_size, clip_box, locate_records
from vl2.datasets.coco_sets import read_instances
from vl2.datasets.conversion import Conversion, Converted, convert_rows, rows_of_split
from vl2.errors import UserError

# The labels used in questions, by the names in the files.
PHOTO_LABELS = {
    "RBC": "red blood cell",
    "WBC": "white blood cell",
    "Platelets": "platelet",
    **{rank: f"{rank} card" for rank in ("nine", "ten", "jack", "queen", "king", "ace")},
}


def read_boxed_photos(conversion: Conversion) -> Converted:
    """Read BCCD (blood cells) or the playing cards: photos with boxes in one Parquet file, under free licenses.

        bccd.parquet or cards.parquet   id, image, width, height, objects: [{name, x0, y0, x1, y1}], upstream_split

    The split is one of upstream's (train, val, test), or `all`. Not every red cell of BCCD has a box, so by default
    it gets no queries for absent labels.
    """
    path = find_file(conversion.folder, f"{conversion.source}.parquet")
    vocabulary = [label for label in PHOTO_LABELS.values() if label.endswith(" card") == (conversion.source == "cards")]

    def make(row: Json) -> Iterator[Record]:
        image = image_bytes(row["image"], row["id"])
        check_size(row, image)
        boxes: dict[str, list[BoxPx]] = defaultdict(list)
        for found in row["objects"]:
            if found["name"] not in PHOTO_LABELS:
                raise UserError(f"an object must be one of {', '.join(PHOTO_LABELS)}, got {found['name']!r}")
            corners = [found[side] for side in ("x0", "y0", "x1", "y1")]
            boxes[PHOTO_LABELS[found["name"]]].append(clip_box(corners, (image.width, image.height)))
        queries = [Query(label=label, boxes_px=tuple(found)) for label, found in boxes.items()]
        queries += absent_queries(conversion, row["id"], len(queries), set(boxes), vocabulary)
        yield from locate_records(conversion, row["id"], image, queries)

    rows = parquet_rows([path], ("id", "image", "objects", "upstream_split"))
    return convert_rows(
        rows if conversion.split == "all" else rows_of_split(rows, "upstream_split", conversion.split), make
    )


def read_refcoco(conversion: Conversion) -> Converted:
    """Read RefCOCO, RefCOCO+ and RefCOCOg: expressions that refer to one object of a COCO image.

    1. The original release, or its list written as JSON, beside the COCO file and the images. The pickle is read as
       plain data: whatever could call something in it is refused.
       refs(unc).p or refs(unc).json   [{ref_id, ann_id, image_id, category_id, split, sentences: [{sent}]}]
       instances.json and train2014/COCO_train2014_000000000009.jpg
    2. Parquet as redistributed by lmms-lab: `image`, `answer` (list of expressions), `bbox` (left, top, width,
       height), `question_id`. It holds only the evaluation splits val, test, testA and testB. It has no categories,
       so there are no queries for absent objects.

    An expression that names its category ("the blue cup") is a query for an absent object in images without that
    category. Other expressions ("left one") could fit any image.
    """
    if any(conversion.folder.glob("refs(*).json")) or any(conversion.folder.glob("refs(*).p")):
        return _read_refcoco_refs(conversion)
    if conversion.negatives:
        raise UserError("the Parquet copy names no categories, so nothing is known to be absent: set negatives to 0")
    columns = ("image", "answer", "bbox", "question_id")
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), columns)

    def make(row: Json) -> Iterator[Record]:
        image = image_bytes(row["image"], str(row["question_id"]))
        box = box_of_xywh(row["bbox"], (image.width, image.height))
        queries = [Query(label=name, boxes_px=(box,)) for name in _refcoco_expressions(conversion, row["answer"])]
        yield from locate_records(conversion, row["question_id"], image, queries)

    return convert_rows(rows, make)


def _refcoco_expressions(conversion: Conversion, texts: list[str]) -> list[str]:
    """Return the distinct expressions in the language of the conversion."""
    return list(dict.fromkeys(name for text in texts if text.strip() and (name := conversion.name(text.strip()))))


def _read_refcoco_refs(conversion: Conversion) -> Converted:
    names = (f"refs({by}).{ending}" for by in ("umd", "unc", "google") for ending in ("json", "p"))
    refs_file = find_file(conversion.folder, *names)
    pickled = _pickled_refs(refs_file) if refs_file.suffix == ".p" else None

    def refs() -> Iterator[Row]:
        return iter(pickled) if pickled is not None else list_rows(refs_file)

    instances = read_instances(find_file(conversion.folder, "instances.json"))
    pictures = DiskIndex(instances.images(), "id")
    annotations = DiskIndex(instances.annotations(), "id")
    expressions = _refcoco_by_category(conversion, refs(), instances.names)

    def make(ref: Json) -> Iterator[Record]:
        picture = pictures[ref["image_id"]]
        file = picture["file_name"]
        image = image_file(conversion.folder, f"train2014/{file}", f"images/mscoco/images/train2014/{file}", file)
        check_size(picture, image)
        box = box_of_xywh(annotations[ref["ann_id"]]["bbox"], (image.width, image.height))
        names = _refcoco_expressions(conversion, [sentence["sent"] for sentence in ref["sentences"]])
        here = {a["category_id"] for a in instances.by_image.rows(ref["image_id"])}
        elsewhere = [category for category in expressions if category not in here]
        vocabulary = expressions[conversion.random(ref["ref_id"], "category").choice(elsewhere)] if elsewhere else ()
        absent = absent_queries(conversion, ref["ref_id"], len(names), set(names), vocabulary)
        queries = [*(Query(label=name, boxes_px=(box,)) for name in names), *absent]
        yield from locate_records(conversion, ref["ref_id"], image, queries)

    return chain(instances.problems(), convert_rows(rows_of_split(refs(), "split", conversion.split), make))


def _pickled_refs(path: Path) -> list[Row]:
    refs = read_plain_pickle(path)
    if not isinstance(refs, list):
        raise UserError(f"{path.name} is not in the layout: it must hold a list, got {type(refs).__name__}")
    return [(f"{path.name} entry {number}", ref) for number, ref in enumerate(refs)]


def _refcoco_by_category(conversion: Conversion, rows: Iterable[Row], names: dict[int, str]) -> dict[int, list[str]]:
    """Return, by category, the split's expressions that name their category."""
    expressions: dict[int, list[str]] = defaultdict(list)
    for _, ref in rows:
        # A malformed ref is skipped here and reported when it is converted.
        if not isinstance(ref, dict) or ref.get("split") != conversion.split or ref.get("category_id") not in names:
            continue
        sentences = ref["sentences"] if isinstance(ref.get("sentences"), list) else []
        texts = [sentence["sent"] for sentence in sentences if isinstance(sentence, dict) and "sent" in sentence]
        category = ref["category_id"]
        naming = [text for text in texts if isinstance(text, str) and names[category].lower() in text.lower()]
        expressions[category] += _refcoco_expressions(conversion, naming)
    return {category: expressions[category] for category in sorted(expressions) if expressions[category]}
