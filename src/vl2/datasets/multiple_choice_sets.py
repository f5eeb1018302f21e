"""Converters of multiple-choice datasets: AI2D (diagrams), ArxivQA (figures), IconQA and SMART-101 (puzzles)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vl2.data.json_stream import Row
from vl2.data.raw_files import Json, find_file, find_files, image_bytes, image_file, jsonl_rows, read_json, read_text
from vl2.data.record import Record, StoredImage
from vl2.datasets.conversion import Conversion, Converted, convert_rows
from vl2.datasets.question_answers import choice_question, converse, short_question
from vl2.errors import UserError


def read_ai2d(conversion: Conversion) -> Converted:
    """Read AI2D: multiple-choice questions about diagrams of science textbooks.

        questions/0.png.json     {questions: {TEXT: {abcLabel, answerTexts, correctAnswer, questionId}}, imageName}
        annotations/0.png.json   {text: {T0: {rectangle: [[x0, y0], [x1, y1]], replacementText}}}
        images/0.png
        ai2d_test_ids.csv        image ids of the test split, one per line

    If `abcLabel` is true, the options are letters that stand for the diagram's labels, and the letters are drawn over
    the labels. The split is `train`, `test` or `all`; without the list of test ids only `all` is possible.
    """
    rows: list[Row] = [(path.name, path) for path in find_files(conversion.folder, "questions/*.json")]
    if conversion.split != "all":
        if conversion.split not in ("train", "test"):
            raise UserError(f"split must be train, test or all, got {conversion.split!r}")
        tests = set(read_text(find_file(conversion.folder, "ai2d_test_ids.csv")).split())
        rows = [row for row in rows if (row[0].split(".")[0] in tests) == (conversion.split == "test")]
    return convert_rows(rows, lambda path: _ai2d_records(conversion, path))


def _ai2d_records(conversion: Conversion, path: Path) -> Iterator[Record]:
    content = read_json(path)
    name = content["imageName"]
    plain = image_file(conversion.folder, f"images/{name}")
    lettered = None
    for text, question in content["questions"].items():
        image = plain
        if question["abcLabel"]:
            image = lettered = lettered or _with_letters(conversion.folder, name)
        options, correct = question["answerTexts"], question["correctAnswer"]
        if not 0 <= correct < len(options):
            raise UserError(f"correctAnswer must be in 0..{len(options) - 1}, got {correct}")
        turn = choice_question(text, options), chr(ord("A") + correct)
        yield converse(conversion, question["questionId"], [turn], [image])


def _with_letters(folder: Path, name: str) -> StoredImage:
    """Return the diagram with each label covered by its letter in a white box."""
    labels: dict[str, Any] = json.loads((folder / "annotations" / f"{name}.json").read_bytes())["text"]
    with Image.open(folder / "images" / name) as opened:
        image = opened.convert("RGB")
    drawing = ImageDraw.Draw(image)
    for label in labels.values():
        (x0, y0), (x1, y1) = label["rectangle"]
        drawing.rectangle((x0, y0, x1, y1), fill="white", outline="black")
        drawing.text(((x0 + x1) / 2, (y0 + y1) / 2), label["replacementText"], fill="black", anchor="mm")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return image_bytes(stream.getvalue(), name)


ASK_REASON = "Explain, and give the letter of the right option at the end."


def read_arxivqa(conversion: Conversion) -> Converted:
    """Read ArxivQA of Multimodal ArXiv: multiple-choice questions about figures of papers, with rationales.

        arxivqa.jsonl   {id, image: "images/1501.00713_1.jpg", question, options: ["A) ..."], label: "A", rationale}
        images/1501.00713_1.jpg

    In the answer the rationale precedes the option, so that the model learns to reason first.
    """

    def make(row: Json) -> Iterator[Record]:
        letter = row["label"].strip()[:1].upper()
        if not "A" <= letter < chr(ord("A") + len(row["options"])):
            raise UserError(f"label must be one of {len(row['options'])} letters, got {row['label']!r}")
        question = "\n".join([row["question"].strip(), *map(str.strip, row["options"]), ASK_REASON])
        answer = f"{row['rationale'].strip()}\nThe answer is {letter}."
        yield converse(conversion, row["id"], [(question, answer)], [image_file(conversion.folder, row["image"])])

    return convert_rows(jsonl_rows(find_file(conversion.folder, "arxivqa.jsonl")), make)


def read_iconqa(conversion: Conversion) -> Converted:
    """Read IconQA: questions about abstract diagrams, with text options or a blank to fill.

        iconqa/train/choose_txt/0/data.json   {question, choices, answer: the index of the right one}
        iconqa/train/fill_in_blank/1/data.json   {question, answer: a text}
        .../image.png beside it

    The third kind, `choose_img`, whose options are images, is left out.
    """
    files = find_files(
        conversion.folder, f"iconqa/{conversion.split}/*/*/data.json", f"{conversion.split}/*/*/data.json"
    )
    kept = [path for path in files if path.parts[-3] in ("choose_txt", "fill_in_blank")]
    rows: list[Row] = [(path.relative_to(conversion.folder).as_posix(), path) for path in kept]

    def make(path: Path) -> Iterator[Record]:
        content = read_json(path)
        image = image_file(conversion.folder, path.with_name("image.png").relative_to(conversion.folder).as_posix())
        question, answer = content["question"], content["answer"]
        if path.parts[-3] == "choose_txt":
            choices = content["choices"]
            if not 0 <= answer < len(choices):
                raise UserError(f"answer must be in 0..{len(choices) - 1}, got {answer}")
            turn = choice_question(question, choices), chr(ord("A") + answer)
        else:
            turn = short_question(question), str(answer)
        yield converse(conversion, f"{conversion.split}-{path.parts[-2]}", [turn], [image])

    return convert_rows(rows, make)


def read_smart101(conversion: Conversion) -> Converted:
    """Read SMART-101: puzzles for children, drawn anew many times, with five options.

        SMART101-Data/7/puzzle_7.csv          id, Question, image, A, B, C, D, E, Answer (a letter), Note
        SMART101-Data/7/img/puzzle_7_12.png   (or beside the CSV)

    The release has no splits, so the split must be `all`. Its own programs test on the last instances of a puzzle, or
    on whole puzzles: keep those out with a filter if you test on them.
    """
    if conversion.split != "all":
        raise UserError(f"the split of smart101 must be all, got {conversion.split!r}")
    files = find_files(conversion.folder, "SMART101-Data/*/puzzle_*.csv", "*/puzzle_*.csv")
    rows = chain.from_iterable(_puzzle_rows(path) for path in files)

    def make(row: tuple[Path, dict[str, str]]) -> Iterator[Record]:
        path, puzzle = row
        folder = path.parent.relative_to(conversion.folder).as_posix()
        image = image_file(conversion.folder, f"{folder}/img/{puzzle['image']}", f"{folder}/{puzzle['image']}")
        answer = puzzle["Answer"].strip()
        if answer not in PUZZLE_LETTERS:
            raise UserError(f"Answer must be one of {', '.join(PUZZLE_LETTERS)}, got {answer!r}")
        question = choice_question(puzzle["Question"], [puzzle[letter].strip() for letter in PUZZLE_LETTERS])
        yield converse(conversion, f"{path.stem}-{puzzle['id']}", [(question, answer)], [image])

    return convert_rows(rows, make)


PUZZLE_LETTERS = ("A", "B", "C", "D", "E")


def _puzzle_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            yield f"{path.name} line {number}", (path, row)
