"""easy-VQA as its package holds it: 64 px pictures of one coloured shape, with questions.

easy_vqa/train/questions.json, easy_vqa/train/images/0.png, ...; the same in test/; answers.txt
"""

from __future__ import annotations

import re
from pathlib import Path

from vl2.datasets.fetch_package import read_members
from vl2.errors import UserError

_KEPT = re.compile(r"^easy_vqa/data/((?:train|test)/(?:questions\.json|images/\d+\.png)|answers\.txt)$")


def write_easy_vqa(folder: Path, archive: Path) -> int:
    """Write the files of both splits into a folder; return the number of pictures."""
    pictures = 0
    for name, data in read_members(archive, lambda member: bool(_KEPT.match(member))):
        file = folder / name.removeprefix("easy_vqa/data/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        pictures += file.suffix == ".png"
    if not pictures:
        raise UserError(f"{archive.name} has no pictures: its layout has changed")
    return pictures
