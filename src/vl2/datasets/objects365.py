"""Objects365: COCO's layout, with the images in patches.

    zhiyuan_objv2_train.json   images: [{id, file_name: "images/v1/patch8/objects365_v1_00420917.jpg"}], ...
    train/patch8/objects365_v1_00420917.jpg   (or under images/train/, or as `file_name` says)

`isfake` marks a picture of the thing and `isreflected` its mirror image: both count as the thing.
"""

from __future__ import annotations

from dataclasses import replace

from vl2.data.raw_files import Row, find_file
from vl2.datasets.coco import locate_each, read_instances
from vl2.datasets.conversion import Conversion, Converted


def read(conversion: Conversion) -> Converted:
    names = (f"zhiyuan_objv2_{conversion.split}.json", f"objects365_{conversion.split}.json")
    path = find_file(conversion.folder, *names, *(f"annotations/{name}" for name in names))
    instances = read_instances(path)
    patched = replace(instances, images=[_in_patch(row) for row in instances.images])
    return locate_each(
        conversion, patched, (f"{conversion.split}/", f"images/{conversion.split}/", "images/v1/", "images/v2/", "")
    )


def _in_patch(row: Row) -> Row:
    """Keep `patch8/objects365_v1_00420917.jpg` of the file's name: the folders before it differ between copies."""
    where, image = row
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        return row
    return where, {**image, "file_name": "/".join(image["file_name"].split("/")[-2:])}
