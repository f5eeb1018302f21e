"""InfographicVQA: DocVQA's form, about infographics.

infographicsvqa_qas/infographicsVQA_train_v1.0.json (or infographicVQA_..., also at the top)
    {data: [{questionId, question, image_local_name: "30000.jpeg", answers}]}
infographicsvqa_images/30000.jpeg   (or images/)
"""

from __future__ import annotations

from vl2.data.raw_files import find_file
from vl2.datasets.conversion import Conversion, Converted
from vl2.datasets.docvqa import read_questions


def read(conversion: Conversion) -> Converted:
    names = (f"info*VQA_{conversion.split}_v1.0*.json", f"info*vqa_{conversion.split}_v1.0*.json")
    path = find_file(
        conversion.folder, *(f"{folder}{name}" for folder in ("infographicsvqa_qas/", "") for name in names)
    )
    return read_questions(conversion, path, "image_local_name", ("infographicsvqa_images/", "images/", ""))
