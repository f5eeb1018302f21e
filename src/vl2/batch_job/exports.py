"""Export the answers of a job: images with drawn boxes and COCO JSON, in files named after the items.

COCO has images, categories and boxes as [x, y, width, height] in pixels. The category of a located box is the item's
query, whatever label the model gave it. Without a query, as for descriptions, the categories are the model's labels
with case and whitespace normalized. `file_name` is the path of the image as it was given, relative to the folder where
the job was started.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from vl2.batch_job.item import BatchItem, item_id
from vl2.errors import UserError
from vl2.files import is_url, write_whole
from vl2.infer.reply import Reply
from vl2.process.image import open_image

UNNAMED = "object"  # category of a box without a label


def to_coco(lines: Iterable[Mapping[str, Any]], items: Sequence[BatchItem], pages: Mapping[str, str]) -> dict[str, Any]:
    """Convert plain output lines to a COCO object. An image without boxes is included, one with an error is not.

    `pages` maps the id of each PDF page's item to the image file that was written for the page.
    """
    item_by_id = {item.id: item for item in items}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    queries = [item.query for item in items if item.query is not None]
    categories = {name: number for number, name in enumerate(dict.fromkeys(map(_one_line, queries)), start=1)}
    for line in lines:
        if "error" in line or "image_size" not in line:
            continue
        item = item_by_id[item_id(line)]
        width, height = line["image_size"]
        image_id = len(images) + 1
        names = {"file_name": pages[item.id]} if item.id in pages else _coco_names(item)
        images.append({"id": image_id, **names, "width": width, "height": height})
        for box in line["boxes"]:
            x0, y0, x1, y1 = box["xyxy_px"]
            w, h = max(0.0, round(x1 - x0, 1)), max(0.0, round(y1 - y0, 1))
            name = _one_line(item.query) if item.query is not None else _one_line(box["label"]).casefold() or UNNAMED
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories.setdefault(name, len(categories) + 1),
                    "bbox": [x0, y0, w, h],
                    "area": round(w * h, 1),
                    "iscrowd": 0,
                    "label": box["label"],  # the model's own word
                }
            )
    return {
        "info": {"description": "boxes located by vl2; file_name is a path from the folder where vl2 was started"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def pages_folder(path: Path) -> Path:
    """Return the folder beside a COCO file for the images of PDF pages."""
    return path.with_name(f"{path.stem}-pages")


def write_coco(lines: Iterable[Mapping[str, Any]], items: Sequence[BatchItem], path: Path) -> None:
    """Write the COCO file, complete or not at all, and an image of each PDF page beside it."""
    pages = _write_pages(items, pages_folder(path))
    write_whole(path, json.dumps(to_coco(lines, items, pages), ensure_ascii=False))


def _write_pages(items: Sequence[BatchItem], folder: Path) -> dict[str, str]:
    """Write an image of each PDF page, so that COCO can name it. Return the paths by item id."""
    stems = file_stems(item.id for item in items)
    written: dict[str, str] = {}
    for item in items:
        if "page" not in item.about:
            continue
        path = folder / f"{stems[item.id]}.png"
        try:
            if not path.exists():
                write_picture(open_image(item.read().images[-1]), path)
        except UserError:  # the item's output line reports this error
            continue
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        written[item.id] = path.as_posix()
    return written


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _coco_names(item: BatchItem) -> dict[str, str]:
    """Return COCO's `file_name`, and `coco_url` for a URL. An image without path or URL has the item's id as name."""
    images = item.read().images
    source = images[-1] if images else None
    if not isinstance(source, str) or source.lower().startswith("data:"):
        return {"file_name": item.id}
    if not is_url(source):
        return {"file_name": Path(source).as_posix()}
    last_part = source.partition("#")[0].partition("?")[0].rpartition("/")[2]
    return {"file_name": last_part or item.id, "coco_url": source}


# Suffixes of input files, which are removed from the names of output files.
_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf", ".docx", ".pptx", ".html", ".htm",
)  # fmt: skip


def draw_answer(path: Path, reply: Reply, image: Image.Image) -> None:
    """Draw a reply's boxes on the image and write it as PNG. Raise OSError if it cannot be written."""
    write_picture(reply.draw(image), path)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, complete or not at all. Raise OSError, with the path, if it cannot be written."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """Map the name of each item or document to a unique file name without suffix.

    "photos/bill.png" becomes "bill". If two names would be equal (ignoring case), each keeps more of its path: the
    folders, or the suffix ("a-png" and "a-jpg").
    """
    left = list(dict.fromkeys(names))
    stems: dict[str, str] = {}
    for shorten in (_last_part, _without_ending, _with_ending_in_name):
        candidates = {name: file_stem(shorten(name)) for name in left}
        taken = Counter(stem.casefold() for stem in (*candidates.values(), *stems.values()))
        stems |= {name: stem for name, stem in candidates.items() if taken[stem.casefold()] == 1}
        left = [name for name in left if name not in stems]
    return stems | {name: f"{file_stem(name)}-{_digest(name)}" for name in left}


def file_stem(name: str) -> str:
    """Return a file name that every file system allows. Different names give different results."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._")[:80]
    if plain == name:
        return plain
    return f"{plain or 'item'}-{_digest(name)}"


def _last_part(name: str) -> str:
    return _without_ending(name).rstrip("/").rpartition("/")[2]


def _without_ending(name: str) -> str:
    """Return "a" for "a.png", and "report-2" for "report.pdf#2"."""
    file, hash_sign, page = name.rpartition("#")
    if hash_sign and page.isdigit() and PurePosixPath(file).suffix.lower() == ".pdf":
        return f"{file[: -len('.pdf')]}-{page}"
    ending = PurePosixPath(name).suffix
    return name[: -len(ending)] if ending.lower() in _ENDINGS else name


def _with_ending_in_name(name: str) -> str:
    ending = PurePosixPath(name).suffix
    return f"{name[: -len(ending)]}-{ending[1:]}" if ending.lower() in _ENDINGS else name


def _digest(name: str) -> str:
    return blake2b(name.encode("utf-8", "replace"), digest_size=4).hexdigest()
