"""Converters of datasets in COCO's layout: COCO boxes and captions, V3Det, Objects365."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vl2.data.disk_index import DiskIndex
from vl2.data.json_stream import Row, list_rows
from vl2.data.raw_files import Json, find_file, image_file
from vl2.data.record import BoxPx, Record
from vl2.datasets.box_questions import Query, absent_queries, box_of_xywh, check_size, locate_records
from vl2.datasets.conversion import Conversion, Converted, RowProblem, convert_rows
from vl2.datasets.question_answers import DESCRIBE, converse
from vl2.errors import UserError
from vl2.process.tiling import Size


@dataclass(frozen=True, kw_only=True)
class Instances:
    """A COCO file of boxes, whose annotations are found by image id. The file is read once for each of its lists."""

    path: Path
    names: dict[int, str]  # category names by id
    by_image: DiskIndex

    def images(self) -> Iterator[Row]:
        return list_rows(self.path, "images")

    def annotations(self) -> Iterator[Row]:
        return list_rows(self.path, "annotations")

    def problems(self) -> Iterator[RowProblem]:
        for where in self.by_image.without_key:
            yield RowProblem(where=where, why="the annotation names no image")


def read_instances(path: Path) -> Instances:
    """Index a COCO file of boxes. Raise UserError if it is not in COCO's layout."""
    list_rows(path, "images")  # raises if there is no such list
    names = {
        row["id"]: str(row.get("name", "")).strip()
        for _, row in list_rows(path, "categories")
        if isinstance(row, dict) and isinstance(row.get("id"), int | str)
    }
    annotations = ((where, _without_outline(row)) for where, row in list_rows(path, "annotations"))
    return Instances(path=path, names=names, by_image=DiskIndex(annotations, "image_id"))


def _without_outline(annotation: object) -> object:
    """Leave out the outline of an object, which nothing here uses and which is most of a COCO file."""
    if not isinstance(annotation, dict):
        return annotation
    return {key: value for key, value in annotation.items() if key != "segmentation"}


@dataclass(frozen=True, kw_only=True)
class ImageBoxes:
    """The boxes of one image by label."""

    boxes_px: dict[str, list[BoxPx]]  # labels whose boxes are all known
    unsure: set[str]  # labels with crowds or bad boxes
    problems: list[str]


def boxes_by_label(annotations: Iterable[Json], names: dict[int, str], size: Size) -> ImageBoxes:
    """Group the annotations of an image by label. A label with a crowd or a bad box counts as unsure."""
    boxes: dict[str, list[BoxPx]] = defaultdict(list)
    unsure, problems = set(), []
    for annotation in annotations:
        label = names[annotation["category_id"]]
        if annotation.get("iscrowd"):
            unsure.add(label)
            continue
        try:
            boxes[label].append(box_of_xywh(annotation["bbox"], size))
        except UserError as error:
            unsure.add(label)
            problems.append(f"{label}: {error}")
    return ImageBoxes(boxes_px={k: v for k, v in boxes.items() if k not in unsure}, unsure=unsure, problems=problems)


def locate_each(
    conversion: Conversion,
    instances: Instances,
    folders: Iterable[str],
    *,
    change: Callable[[Row], Row] = lambda row: row,
) -> Converted:
    """Make locate questions for every label of every image, and for absent labels. `change` adapts rows of images."""
    vocabulary = [name for label in instances.names.values() if (name := conversion.name(label))]
    folders = tuple(folders)

    def make(image: Json) -> Iterator[Record | RowProblem]:
        stored = image_file(conversion.folder, *(f"{folder}{image['file_name']}" for folder in folders))
        check_size(image, stored)
        found = boxes_by_label(instances.by_image.rows(image["id"]), instances.names, (stored.width, stored.height))
        yield from (RowProblem(where=image["file_name"], why=why) for why in found.problems)
        queries = [
            Query(label=name, boxes_px=tuple(boxes))
            for label, boxes in found.boxes_px.items()
            if (name := conversion.name(label))
        ]
        present = {conversion.name(label) or label for label in (*found.boxes_px, *found.unsure)}
        queries += absent_queries(conversion, image["id"], len(queries), present, vocabulary)
        yield from locate_records(conversion, image["id"], stored, queries)

    return chain(instances.problems(), convert_rows(map(change, instances.images()), make))


def read_boxes(conversion: Conversion) -> Converted:
    """Read COCO's boxes from `annotations/instances_train2017.json`, with the images in `train2017/`."""
    split = conversion.split
    path = find_file(conversion.folder, f"annotations/instances_{split}*.json", f"instances_{split}*.json")
    name = path.stem.removeprefix("instances_")
    return locate_each(conversion, read_instances(path), (f"{name}/", f"images/{name}/", "images/", ""))


def read_v3det(conversion: Conversion) -> Converted:
    """Read V3Det from `annotations/v3det_2023_v1_train.json`, whose `file_name` starts with `images/`."""
    names = (f"v3det_*_{conversion.split}.json", f"v3det_{conversion.split}.json")
    path = find_file(conversion.folder, *(f"annotations/{n}" for n in names), *names)
    return locate_each(conversion, read_instances(path), ("", "images/"))


def read_captions(conversion: Conversion) -> Converted:
    """Read COCO's captions from `annotations/captions_train2017.json`, with the images in `train2017/`."""
    split = conversion.split
    path = find_file(conversion.folder, f"annotations/captions_{split}*.json", f"captions_{split}*.json")
    name = path.stem.removeprefix("captions_")
    pictures = DiskIndex(list_rows(path, "images"), "id")

    def make(row: Json) -> Iterator[Record]:
        file = pictures[row["image_id"]]["file_name"]
        stored = image_file(conversion.folder, f"{name}/{file}", f"images/{name}/{file}", f"images/{file}", file)
        yield converse(
            conversion, row["id"], [(conversion.random(row["id"]).choice(DESCRIBE), row["caption"])], [stored]
        )

    return convert_rows(list_rows(path, "annotations"), make)


def read_objects365(conversion: Conversion) -> Converted:
    """Read Objects365: COCO's layout, with the images in folders named patch0, patch1 and so on.

        zhiyuan_objv2_train.json   images: [{id, file_name: "images/v1/patch8/objects365_v1_00420917.jpg"}], ...
        train/patch8/objects365_v1_00420917.jpg   (or under images/train/, or as `file_name` says)

    Objects with `isfake` (a picture of the object) or `isreflected` (its reflection) count as the object.
    """
    names = (f"zhiyuan_objv2_{conversion.split}.json", f"objects365_{conversion.split}.json")
    path = find_file(conversion.folder, *names, *(f"annotations/{name}" for name in names))
    instances = read_instances(path)
    folders = (f"{conversion.split}/", f"images/{conversion.split}/", "images/v1/", "images/v2/", "")
    return locate_each(conversion, instances, folders, change=_in_patch)


def _in_patch(row: Row) -> Row:
    """Shorten a file name to `patch8/objects365_v1_00420917.jpg`, because the folders before it vary by copy."""
    where, image = row
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        return row
    return where, {**image, "file_name": "/".join(image["file_name"].split("/")[-2:])}
