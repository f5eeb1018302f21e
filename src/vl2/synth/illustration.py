"""Illustrations for drawn pages: photographs of a folder, or drawn scenes of colored shapes."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps

from vl2.data.raw_files import IMAGE_ENDINGS
from vl2.errors import UserError
from vl2.synth.scene import Scene
from vl2.synth.source import Dropped


@lru_cache(maxsize=4)
def find_photographs(folder: str) -> tuple[Path, ...]:
    """Return the images in a folder and its subfolders, sorted by path. Raise UserError if there are none."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        raise UserError(f"{folder} holds no photograph: files ending in {', '.join(IMAGE_ENDINGS)} are needed")
    return tuple(found)


def choose_illustration(rng: random.Random, folder: str | None, max_side_px: int) -> Image.Image:
    """Return a random photograph of the folder, upright and scaled down to the side; None draws a scene instead.

    Raise Dropped if the photograph cannot be read.
    """
    if folder is None:
        image = Scene().compose(rng).image
    else:
        path = rng.choice(find_photographs(folder))
        try:
            with Image.open(path) as opened:
                opened.draft("RGB", (max_side_px, max_side_px))  # decodes a large JPEG at a fraction of its size
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise Dropped("a photograph cannot be read") from None
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return image
