"""Draw synthetic test items from a seed that is reserved for tests.

An item depends on its number and `HELD_OUT_SEED` alone, so a limit takes the first items of a fixed list, which is the
same on every machine with the same fonts.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from PIL import Image

from vl2.errors import UserError
from vl2.eval.held_out import HELD_OUT_SEED
from vl2.eval.task import DataSource, Item, Task
from vl2.synth.draft import Draft
from vl2.synth.source import Dropped, Source, rng_for

MAX_DROPPED = 500  # after this many failures in a row, assume that no item can be drawn

Draw = Callable[[random.Random, str], Item]  # (generator, id) -> item; raises Dropped if it cannot be drawn


def draw_items(task: Task, draw: Draw) -> Iterator[Item]:
    """Yield drawn items endlessly. Raise UserError after MAX_DROPPED failures in a row."""
    dropped = 0
    for number in count():
        try:
            yield draw(rng_for(HELD_OUT_SEED, task.name, number), f"{task.name}-{number:05d}")
            dropped = 0
        except Dropped as reason:
            dropped += 1
            if dropped > MAX_DROPPED:
                raise UserError(f"{task.name} cannot be drawn: {reason}") from None


def item_of(source: Source, draft: Draft, id: str, *, part: str | None = None) -> Item:
    """Return the first question of a draft as an item, worded as in training. `part` defaults to the language."""
    record = source.finish(draft, 0, 0)
    question, answer = (message.parts[-1].text or "" for message in record.messages[:2])
    image = record.images[0].data
    return Item(id=id, question=question, images=(image,), gold=[answer], part=part or record.language)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def font_folders(data_source: DataSource) -> tuple[str, ...] | None:
    """Return the folder of --fonts, or None for the system's fonts. Raise UserError if it is not a folder."""
    if data_source.fonts is None:
        return None
    if not data_source.fonts.is_dir():
        raise UserError(f"--fonts {data_source.fonts} is not a folder")
    return (str(data_source.fonts),)


def passages_file(data_source: DataSource, language: str) -> str | None:
    """Return the file of passages in --data, such as text/en.txt, or None for the built-in passages."""
    path = Path(data_source.data or ".") / "text" / f"{language}.txt"
    return str(path) if data_source.data is not None and path.is_file() else None


def sprite_folder(data_source: DataSource, *names: str) -> str:
    """Return the first sprite set with one of these names in --data, or "" for the built-in shapes."""
    if data_source.data is None:
        return ""
    found = [
        path
        for path in (data_source.data, *(data_source.data / name for name in names))
        if (path / "sprites.json").is_file()
    ]
    return str(found[0]) if found else ""
