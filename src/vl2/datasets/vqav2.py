"""VQAv2: short questions about COCO images, ten answers each; the most frequent one is learned.

v2_OpenEnded_mscoco_train2014_questions.json   {questions: [{question_id, image_id, question}]}
v2_mscoco_train2014_annotations.json           {annotations: [{question_id, multiple_choice_answer}]}
train2014/COCO_train2014_000000000009.jpg
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.raw_files import Json, find_file, image_file, index_by, read_list
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import converse, short_question


def read(conversion: Conversion) -> Converted:
    questions_file = find_file(conversion.folder, f"v2_OpenEnded_mscoco_{conversion.split}*_questions.json")
    part = questions_file.name.split("_")[3]  # train2014
    answers_file = find_file(conversion.folder, f"v2_mscoco_{part}_annotations.json")
    answers = index_by(read_list(answers_file, "annotations"), "question_id")

    def make(row: Json) -> Iterator[Record]:
        name = f"{part}/COCO_{part}_{row['image_id']:012d}.jpg"
        turn = short_question(row["question"]), answers[row["question_id"]]["multiple_choice_answer"]
        yield converse(conversion, row["question_id"], [turn], [image_file(conversion.folder, name, f"images/{name}")])

    return each(read_list(questions_file, "questions"), make)
