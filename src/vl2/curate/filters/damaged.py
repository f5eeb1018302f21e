"""Drop records whose images are missing, do not open, or are not of the size that the record says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vl2.curate.filters.verdict import KEPT, Verdict, dropped
from vl2.data.record import Record
from vl2.data.stored_image import open_stored
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """Open every image to its last pixel: a truncated file fails only there."""

    root: Path = Path()
    name: str = "damaged"

    def __call__(self, record: Record) -> Verdict:
        for number, image in enumerate(record.images):
            try:
                size = open_stored(image, self.root).size
            except UserError as error:
                return dropped(f"image {number}: {error}")
            if size != (image.width, image.height):
                is_px, says_px = f"{size[0]} x {size[1]} px", f"{image.width} x {image.height} px"
                return dropped(f"image {number} is {is_px}, the record says {says_px}")
        return KEPT
