"""TextVQA: questions that need the text in a photo, ten answers each; the most frequent one is learned.

    TextVQA_0.5.1_train.json                {data: [{question_id, image_id, question, answers}]}
    TextVQA_Rosetta_OCR_v0.2_train.json     {data: [{image_id, ocr_tokens}]}   (optional)
    train_images/0054c91397f2fe05.jpg

Where the file of tokens is there, every second question (by its id) gives them as a hint, as some benchmarks do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vl2.data.raw_files import Json, find_file, image_file, index_by, read_list
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import converse, short_question

MAX_HINT_TOKENS = 50


def read(conversion: Conversion) -> Converted:
    path = find_file(conversion.folder, f"TextVQA_[0-9]*_{conversion.split}.json")
    tokens = _ocr_tokens(conversion)

    def make(row: Json) -> Iterator[Record]:
        name = f"{row['image_id']}.jpg"
        # The validation split's images are among the training split's.
        image = image_file(conversion.folder, f"train_images/{name}", f"{conversion.split}_images/{name}")
        # most_common() returns the first of equals.
        answer: str = Counter(row["answers"]).most_common(1)[0][0]
        question, hint = row["question"], tokens.get(row["image_id"], {}).get("ocr_tokens", [])[:MAX_HINT_TOKENS]
        if hint and conversion.random(row["question_id"]).random() < 0.5:
            question = f"{question.strip()}\nReference OCR token: {', '.join(hint)}"
        yield converse(conversion, row["question_id"], [(short_question(question), answer)], [image])

    return each(read_list(path, "data"), make)


def _ocr_tokens(conversion: Conversion) -> dict[str, Json]:
    path = next(iter(sorted(conversion.folder.glob(f"TextVQA_Rosetta_OCR_*_{conversion.split}.json"))), None)
    return index_by(read_list(path, "data"), "image_id") if path is not None else {}
