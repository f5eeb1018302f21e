"""Converters of short-answer datasets: VQAv2, GQA, KVQA, TextVQA, DocVQA, InfographicVQA and ChartQA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from vl2.data.disk_index import DiskIndex
from vl2.data.json_stream import Row, list_rows, object_rows
from vl2.data.raw_files import Json, find_file, find_files, image_file
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, convert_rows
from vl2.datasets.question_answers import converse, short_question
from vl2.errors import UserError


def read_vqav2(conversion: Conversion) -> Converted:
    """Read VQAv2: short questions about COCO images. Of the ten answers the most frequent one is used.

    v2_OpenEnded_mscoco_train2014_questions.json   {questions: [{question_id, image_id, question}]}
    v2_mscoco_train2014_annotations.json           {annotations: [{question_id, multiple_choice_answer}]}
    train2014/COCO_train2014_000000000009.jpg
    """
    questions_file = find_file(conversion.folder, f"v2_OpenEnded_mscoco_{conversion.split}*_questions.json")
    part = questions_file.name.split("_")[3]  # train2014
    answers_file = find_file(conversion.folder, f"v2_mscoco_{part}_annotations.json")
    answers = DiskIndex(list_rows(answers_file, "annotations"), "question_id")

    def make(row: Json) -> Iterator[Record]:
        name = f"{part}/COCO_{part}_{row['image_id']:012d}.jpg"
        turn = short_question(row["question"]), answers[row["question_id"]]["multiple_choice_answer"]
        yield converse(conversion, row["question_id"], [turn], [image_file(conversion.folder, name, f"images/{name}")])

    return convert_rows(list_rows(questions_file, "questions"), make)


def read_gqa(conversion: Conversion) -> Converted:
    """Read GQA: compositional questions about Visual Genome images.

        train_balanced_questions.json   {"02930152": {imageId, question, answer, fullAnswer}}
        images/2354786.jpg

    The split is `train_balanced`, `val_balanced`, ...; `train` means `train_balanced`.
    """
    path = find_file(
        conversion.folder, f"{conversion.split}_questions.json", f"{conversion.split}_balanced_questions.json"
    )

    def make(row: tuple[str, Json]) -> Iterator[Record]:
        id, question = row
        image = image_file(conversion.folder, f"images/{question['imageId']}.jpg", f"{question['imageId']}.jpg")
        yield converse(conversion, id, [(short_question(question["question"]), question["answer"])], [image])

    return convert_rows(object_rows(path), make)


MAX_HINT_TOKENS = 50


def read_textvqa(conversion: Conversion) -> Converted:
    """Read TextVQA: questions about text in photos. Of the ten answers the most frequent one is used.

        TextVQA_0.5.1_train.json                {data: [{question_id, image_id, question, answers}]}
        TextVQA_Rosetta_OCR_v0.2_train.json     {data: [{image_id, ocr_tokens}]}   (optional)
        train_images/0054c91397f2fe05.jpg

    If the file of OCR tokens exists, half of the questions (chosen by id) give them as a hint, as some benchmarks do.
    """
    path = find_file(conversion.folder, f"TextVQA_[0-9]*_{conversion.split}.json")
    tokens = _textvqa_tokens(conversion)

    def make(row: Json) -> Iterator[Record]:
        name = f"{row['image_id']}.jpg"
        # The images of the validation split are in the folder of the training split.
        image = image_file(conversion.folder, f"train_images/{name}", f"{conversion.split}_images/{name}")
        # If answers are equally frequent, most_common() returns the one that occurs first.
        answer: str = Counter(row["answers"]).most_common(1)[0][0]
        question, hint = row["question"], _ocr_tokens(tokens, row["image_id"])
        if hint and conversion.random(row["question_id"]).random() < 0.5:
            question = f"{question.strip()}\nReference OCR token: {', '.join(hint)}"
        yield converse(conversion, row["question_id"], [(short_question(question), answer)], [image])

    return convert_rows(list_rows(path, "data"), make)


def _textvqa_tokens(conversion: Conversion) -> DiskIndex | None:
    path = next(iter(sorted(conversion.folder.glob(f"TextVQA_Rosetta_OCR_*_{conversion.split}.json"))), None)
    return DiskIndex(list_rows(path, "data"), "image_id") if path is not None else None


def _ocr_tokens(tokens: DiskIndex | None, image_id: str) -> list[str]:
    found = tokens.rows(image_id) if tokens is not None else []
    return found[-1].get("ocr_tokens", [])[:MAX_HINT_TOKENS] if found else []


def read_docvqa(conversion: Conversion) -> Converted:
    """Read DocVQA: questions about pages of scanned documents. Of several spellings of an answer the first is used.

        spdocvqa_qas/train_v1.0_withQT.json   {data: [{questionId, question, image: "documents/xnbl0037_1.png", ...}]}
        spdocvqa_images/xnbl0037_1.png

    The older release is supported too. It has train_v1.0.json and documents/, either at the top or under train/.
    """
    folders = ("spdocvqa_qas/", "", f"{conversion.split}/")
    names = (f"{folder}{conversion.split}_v1.0{form}.json" for folder in folders for form in ("_withQT", ""))
    path = find_file(conversion.folder, *names)
    return read_questions(conversion, path, "image", ("", f"{conversion.split}/"), ("spdocvqa_images/",))


def read_questions(
    conversion: Conversion, path: Path, image_key: str, folders: tuple[str, ...], flat_folders: tuple[str, ...] = ()
) -> Converted:
    """Read the layout that DocVQA and InfographicVQA share.

    Images are searched under `folders` by their full name, and under `flat_folders` by their base name.
    """

    def make(row: Json) -> Iterator[Record]:
        name: str = row[image_key]
        flat = name.rpartition("/")[2]
        places = (*(f"{folder}{name}" for folder in folders), *(f"{folder}{flat}" for folder in flat_folders))
        image = image_file(conversion.folder, *places)
        yield converse(conversion, row["questionId"], [(short_question(row["question"]), row["answers"][0])], [image])

    return convert_rows(list_rows(path, "data"), make)


def read_infovqa(conversion: Conversion) -> Converted:
    """Read InfographicVQA: questions about infographics, in the layout of DocVQA.

    infographicsvqa_qas/infographicsVQA_train_v1.0.json (or infographicVQA_..., also at the top)
        {data: [{questionId, question, image_local_name: "30000.jpeg", answers}]}
    infographicsvqa_images/30000.jpeg   (or images/)
    """
    names = (f"info*VQA_{conversion.split}_v1.0*.json", f"info*vqa_{conversion.split}_v1.0*.json")
    path = find_file(
        conversion.folder, *(f"{folder}{name}" for folder in ("infographicsvqa_qas/", "") for name in names)
    )
    return read_questions(conversion, path, "image_local_name", ("infographicsvqa_images/", "images/", ""))


def read_kvqa(conversion: Conversion) -> Converted:
    """Read KVQA: questions about the people in images of Wikipedia, which need knowledge of the world.

        dataset.json          {"39346": {imgPath: "KVQAimgs/39346.jpg", Questions: [...], Answers: [...], wikiCap, ...}}
        KVQAimgs/39346.jpg

    The questions about an image are turns of one record. The image's caption names the people, without whom most
    questions have no answer, so it is given with the first question. The split must be `all`: the file gives each
    image a number in each of five divisions, and we could not confirm what the numbers mean.
    """
    if conversion.split != "all":
        raise UserError(f"the split of kvqa must be all, got {conversion.split!r}")

    def make(row: tuple[str, Json]) -> Iterator[Record]:
        id, content = row
        image = image_file(conversion.folder, content["imgPath"])
        caption = f"The image's caption: {content['wikiCap'].strip()}\n" if content.get("wikiCap") else ""
        # Answers that are counts are numbers in the file.
        pairs = zip(content["Questions"], map(str, content["Answers"]), strict=True)
        turns = [(short_question(question), answer) for question, answer in pairs]
        turns[0] = caption + turns[0][0], turns[0][1]
        yield converse(conversion, id, turns, [image])

    return convert_rows(object_rows(find_file(conversion.folder, "dataset.json")), make)


def read_chartqa(conversion: Conversion) -> Converted:
    """Read ChartQA: questions about charts, written by people or generated from the charts' captions.

        train/train_human.json, train/train_augmented.json   [{imgname, query, label}]
        train/png/41699051005347.png

    The folder must contain `train/`; in the release it is called `ChartQA Dataset`.
    """
    files = find_files(conversion.folder, f"{conversion.split}/{conversion.split}_*.json")
    rows = chain.from_iterable(_chartqa_rows(path) for path in files)

    def make(row: tuple[str, int, dict[str, str]]) -> Iterator[Record]:
        part, number, question = row
        image = image_file(conversion.folder, f"{conversion.split}/png/{question['imgname']}")
        yield converse(
            conversion, f"{part}-{number}", [(short_question(question["query"]), question["label"])], [image]
        )

    return convert_rows(rows, make)


def _chartqa_rows(path: Path) -> Iterator[Row]:
    """Yield the questions of a file, numbered because they have no ids."""
    for i, (where, row) in enumerate(list_rows(path)):
        yield where, row if isinstance(row, UserError) else (path.stem, i, row)
