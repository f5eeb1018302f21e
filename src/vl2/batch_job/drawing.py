"""The picture of an answer: the searched image with its boxes, in a file named after the item."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from PIL import Image

from vl2.infer.reply import Reply

# Endings that say of what kind a file is, and that a file made of it does not repeat.
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf")


def draw_answer(path: Path, reply: Reply, image: Image.Image) -> None:
    """Write the picture as PNG, whole or not at all. OSError if it cannot be written."""
    write_picture(reply.draw(image), path)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all. OSError, with the path, if it cannot be written."""
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
    """Return for each name of an item or document what its files are called, without an ending.

    "photos/bill.png" is "bill". Where two would be called alike, capitals aside, each keeps more of its name: its
    folders, or its ending ("a-png" and "a-jpg").
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
    """Return a name that any file system takes, different for different names."""
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
