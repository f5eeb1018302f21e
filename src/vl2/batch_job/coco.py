"""The boxes of a finished job as COCO JSON: images, categories by label, boxes as [x, y, width, height] in pixels."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vl2.errors import UserError


def to_coco(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return COCO's object for plain lines. An image without boxes is listed, one with an error is not."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for line in lines:
        if "error" in line or "image_size" not in line:
            continue
        width, height = line["image_size"]
        image_id = len(images) + 1
        name = line.get("file", line["id"]) if "page" not in line else line["id"]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for box in line["boxes"]:
            x0, y0, x1, y1 = box["xyxy_px"]
            w, h = max(0.0, round(x1 - x0, 1)), max(0.0, round(y1 - y0, 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories.setdefault(box["label"], len(categories) + 1),
                    "bbox": [x0, y0, w, h],
                    "area": round(w * h, 1),
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "boxes located by vl2"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def write_coco(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the file, whole or not at all."""
    write_whole(path, json.dumps(to_coco(lines), ensure_ascii=False))


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step. UserError if it cannot be written; then an older one stays as it was."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from None
