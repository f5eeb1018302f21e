"""Whether the system holds a part of a file in pages of 2 MiB, which processors read two to three times as fast.

Only Linux says so, of what a process has mapped: so some places are.
"""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

from vl2.weights.mapped_file import MAPPINGS, MappedFile

HUGE_PAGE = 2 << 20
NUM_SAMPLES = 8


def lies_in_huge_pages(path: Path, offset: int, nbytes: int) -> bool:
    """Tell it of a part of a file by eight of its huge pages. What is not in memory is read for that."""
    first, stop = -(-offset // HUGE_PAGE), (offset + nbytes) // HUGE_PAGE
    count = min(NUM_SAMPLES, stop - first)
    if count < 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    file = MappedFile(path)
    file.prefer_huge_pages(True)
    for sample in range(count):
        file.read((first + sample * (stop - first) // count) * HUGE_PAGE, HUGE_PAGE)
    return mapped_huge(file) >= (count - 1) * HUGE_PAGE  # one may lie where two writes meet


def mapped_huge(file: MappedFile) -> int:
    """Return how many bytes of a map lie in huge pages; 0 where the system does not say."""
    try:
        lines = MAPPINGS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    mine = itertools.dropwhile(lambda line: not line.startswith(f"{file.address:x}-"), lines)
    return next((int(line.split()[1]) << 10 for line in mine if line.startswith("FilePmdMapped:")), 0)
