"""The picture of an answer: the searched image with its boxes, in a file named after the item."""

from __future__ import annotations

import contextlib
import re
from hashlib import blake2b
from pathlib import Path

from PIL import Image

from vl2.infer.reply import Reply


def draw_answer(folder: Path, item_id: str, reply: Reply, image: Image.Image) -> Path:
    """Write the picture, whole or not at all, and return its path. OSError if it cannot be written."""
    path = folder / f"{file_stem(item_id)}.png"
    partial = path.with_suffix(".part")
    try:
        reply.draw(image).save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    return path


def file_stem(item_id: str) -> str:
    """Return a name that any file system takes, different for different items."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", item_id).strip("._")[:80]
    if plain == item_id:
        return plain
    return f"{plain or 'item'}-{blake2b(item_id.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"
