"""Drop records with an image too small or too narrow to show anything. Sizes are the record's, nothing is opened."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.curate.filters.verdict import KEPT, Verdict, dropped
from vl2.data.record import Record
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """`max_aspect` is the longer side over the shorter one."""

    min_side_px: int = 32
    max_aspect: float = 16.0
    name: str = "tiny"

    def __post_init__(self) -> None:
        if self.min_side_px < 1 or self.max_aspect < 1:
            raise UserError(
                f"min_side_px and max_aspect must be at least 1, got {self.min_side_px} and {self.max_aspect}"
            )

    def __call__(self, record: Record) -> Verdict:
        for number, image in enumerate(record.images):
            shorter, longer = sorted((image.width, image.height))
            size = f"image {number} is {image.width} x {image.height} px"
            if shorter < self.min_side_px:
                return dropped(f"{size}, its shorter side is below {self.min_side_px} px")
            if longer > self.max_aspect * shorter:
                return dropped(f"{size}, its aspect is above {self.max_aspect:g}")
        return KEPT
