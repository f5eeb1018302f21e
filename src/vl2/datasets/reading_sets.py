"""Converters of images to transcribe: formulas (LaTeX-OCR, HME100K), handwritten numbers and rendered handwriting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from vl2.data.json_stream import Row
from vl2.data.raw_files import find_file, find_files, image_bytes, image_file, read_text, tar_samples
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, convert_rows
from vl2.datasets.question_answers import TRANSCRIBE, converse
from vl2.errors import UserError

FORMULA_TO_LATEX = (
    "Write the formula in the image as LaTeX.",
    "What is the LaTeX code of this formula?",
    "Transcribe the formula to LaTeX.",
    "Convert this formula to LaTeX.",
)


def read_latex_ocr(conversion: Conversion) -> Converted:
    """Read LaTeX-OCR: rendered formulas with their LaTeX.

    math.txt                 one formula per line
    train/0000012.png        an image of line 12, counted from 0; the splits are train, val and test
    """
    folder = conversion.folder
    pictures = find_files(folder, f"{conversion.split}/*.png", f"formulae/{conversion.split}/*.png")
    # One list of the formulas, which have some 20 MB in all, because images name their lines.
    formulas = read_text(find_file(folder, "math.txt", "formulae/math.txt")).split("\n")
    rows: Iterator[Row] = ((path.relative_to(folder).as_posix(), path) for path in pictures)

    def make(path: Path) -> Iterator[Record]:
        if not path.stem.isdigit() or int(path.stem) >= len(formulas):
            raise UserError(f"its name must be the number of a line, below {len(formulas)}")
        image = image_file(folder, path.relative_to(folder).as_posix())
        prompt = conversion.random(path.stem).choice(FORMULA_TO_LATEX)
        yield converse(conversion, f"{conversion.split}-{path.stem}", [(prompt, formulas[int(path.stem)])], [image])

    return convert_rows(rows, make)


def read_hme100k(conversion: Conversion) -> Converted:
    r"""Read HME100K: photographs of handwritten formulas with their LaTeX, a blank between tokens.

    train_labels.txt           train_0.jpg<TAB>x ^ { 2 } + 1
    train_images/train_0.jpg
    """
    path = find_file(conversion.folder, f"{conversion.split}_labels.txt")

    def make(line: str) -> Iterator[Record]:
        name, tab, formula = line.rstrip("\r\n").partition("\t")
        if not tab:
            raise UserError("a line must be a file name, a tab and a formula")
        image = image_file(conversion.folder, f"{conversion.split}_images/{name}")
        prompt = conversion.random(name).choice(FORMULA_TO_LATEX)
        yield converse(conversion, f"{conversion.split}-{name.rpartition('.')[0]}", [(prompt, formula)], [image])

    return convert_rows(_lines(path), make)


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path.name} line {number}", line


def read_rendered_text(conversion: Conversion) -> Converted:
    """Read RenderedText: text in handwriting-like fonts on rendered sheets of paper.

    00000.tar   {key}.png and {key}.json, whose ocr_annotation.text is the list of lines
    """
    files = find_files(conversion.folder, f"{conversion.split}/*.tar", "*.tar")
    samples = chain.from_iterable(map(tar_samples, files))
    rows = ((where, row if isinstance(row, UserError) else (where, row)) for where, row in samples)

    def make(row: tuple[str, dict[str, bytes]]) -> Iterator[Record]:
        where, sample = row
        id = where.replace(".tar ", "-")
        lines: list[str] = json.loads(sample[".json"])["ocr_annotation"]["text"]
        prompt = conversion.random(id).choice(TRANSCRIBE)
        yield converse(conversion, id, [(prompt, "\n".join(lines))], [image_bytes(sample[".png"], id)])

    return convert_rows(rows, make)


READ_NUMBER = (
    "Read the handwritten number.",
    "What number is written here?",
    "Which digits does the image show?",
    "Write down the number in the image.",
)


def read_hdsrc(conversion: Conversion) -> Converted:
    r"""Read ORAND-CAR, the amounts on checks of the ICFHR 2014 contest on handwritten strings of digits (HDSRC).

    CAR-A/a_train_gt.txt                          a_car_000001.png<TAB>1530, a line for each image
    CAR-A/a_train_images/a_car_000001.png
    CAR-B/b_train_gt.txt, CAR-B/b_train_images/   the same of another bank
    """
    split = conversion.split
    lists = find_files(conversion.folder, f"CAR-?/?_{split}_gt.txt", f"?_{split}_gt.txt")
    rows = ((where, (path, line)) for path in lists for where, line in _lines(path))

    def make(row: tuple[Path, str]) -> Iterator[Record]:
        path, line = row
        name, _, number = line.strip().partition("\t")
        if not number.isascii() or not number.isdigit():
            raise UserError("a line must be a file name, a tab and digits")
        images = path.with_name(path.name.replace("_gt.txt", "_images")).relative_to(conversion.folder)
        image = image_file(conversion.folder, (images / name).as_posix())
        prompt = conversion.random(name).choice(READ_NUMBER)
        yield converse(conversion, f"{split}-{name.rpartition('.')[0]}", [(prompt, number)], [image])

    return convert_rows(rows, make)
