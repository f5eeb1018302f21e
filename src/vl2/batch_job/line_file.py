"""The output of a job, which is also its memory: a line for each item, in order, never twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vl2.resumable_log import ResumableLog


class LineFile(ResumableLog):
    """Lines by the name of their item."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. UserError if another run has it open, or it was not written by a job."""
        foreign = "is not the output of a job: line {number} has no id"
        super().__init__(path, item_id, foreign=foreign)


def item_id(line: Mapping[str, Any]) -> str:
    """Return the name of the item that a line answers."""
    name = line["custom_id"] if "custom_id" in line else line["id"]
    if not isinstance(name, str):
        raise TypeError(name)
    return name
