"""Images fetched by img2dataset with their captions: how the large caption sets, which are lists of urls, arrive.

    00000.tar   {key}.jpg, {key}.txt (the caption), {key}.json (with what --save_additional_columns kept)

Of several captions in the JSON the richest is taken: a written one before the alternative text of the web page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain

from vl2.data.raw_files import IMAGE_ENDINGS, find_files, image_bytes, tar_samples
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import DESCRIBE, DESCRIBE_IN_DETAIL, converse
from vl2.errors import UserError

CAPTION_KEYS = ("vlm_caption", "long_caption", "caption", "text")
LONG_CAPTION = 200  # characters; above it the question asks for detail


def read(conversion: Conversion) -> Converted:
    files = find_files(conversion.folder, f"{conversion.split}/*.tar", "*.tar")
    samples = chain.from_iterable(map(tar_samples, files))
    rows = ((where, row if isinstance(row, UserError) else (where, row)) for where, row in samples)

    def make(row: tuple[str, dict[str, bytes]]) -> Iterator[Record]:
        where, sample = row
        id = where.replace(".tar ", "-")
        ending = next((e for e in IMAGE_ENDINGS if e in sample), None)
        if ending is None:
            raise UserError(f"no image: the sample has {', '.join(sample)}")
        caption = _caption(sample)
        prompts = DESCRIBE_IN_DETAIL if len(caption) > LONG_CAPTION else DESCRIBE
        yield converse(
            conversion, id, [(conversion.random(id).choice(prompts), caption)], [image_bytes(sample[ending], id)]
        )

    return each(rows, make)


def _caption(sample: dict[str, bytes]) -> str:
    fields = json.loads(sample.get(".json", b"{}"))
    found = next((fields[key] for key in CAPTION_KEYS if fields.get(key)), None)
    return str(found) if found is not None else sample.get(".txt", b"").decode()
