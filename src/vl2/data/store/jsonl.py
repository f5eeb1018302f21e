"""JSONL: one record per line. Images are files with paths relative to the JSONL file, or base64 text when reading."""

from __future__ import annotations

import json
import posixpath
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO

from vl2.data.record import Record, StoredImage
from vl2.data.store.entry import Found, Place, Problem, parse_json
from vl2.data.store.locations import DataFile
from vl2.errors import UserError

SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)


def read_jsonl(file: DataFile) -> Iterator[Found]:
    """Yield the record or problem of every line. Blank lines are skipped."""
    row = 0
    try:
        with file.open() as lines:
            for row, line in enumerate(lines):
                if line.strip():
                    yield parse_json(line, Place(file=file.name, row=row), file.read_image)
    except (UserError, OSError) as error:
        yield Problem(place=Place(file=file.name, row=row), id=None, kind="unreadable", why=str(error))


class JsonlRecords:
    """Random access to the records of a JSONL file. Opening it scans the file for line offsets."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._starts = array("q")
        self._ends = array("q")
        self._rows = array("q")
        position = 0
        with file.open() as lines:
            for row, line in enumerate(lines):
                if line.strip():
                    self._starts.append(position)
                    self._ends.append(position + len(line))
                    self._rows.append(row)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, index: int) -> Found:
        line = self._file.read(self._starts[index], self._ends[index])
        return parse_json(line, Place(file=self._file.name, row=self._rows[index]), self._file.read_image)


def write_jsonl(records: Iterable[Record], out: IO[bytes], file: DataFile) -> None:
    """Write the lines to `out`, and the images to the folder `images_folder(file)`."""
    folder = posixpath.basename(images_folder(file).path)
    for row, record in enumerate(records):
        images = []
        for index, image in enumerate(record.images):
            assert image.data is not None, record.id
            path = f"{folder}/{row:08d}-{index}.{image_ending(image.data)}"
            with file.within_folder(path).create() as image_file:
                image_file.write(image.data)
            images.append(StoredImage(path=path, width=image.width, height=image.height))
        values = replace(record, images=tuple(images)).to_dict()
        out.write(json.dumps(values, ensure_ascii=False).encode("utf-8") + b"\n")


def images_folder(file: DataFile) -> DataFile:
    """Return the folder for the images of a JSONL file: "a-images" for "a.jsonl"."""
    return DataFile(fs=file.fs, path=_images_path(file.path), name=_images_path(file.name))


def _images_path(path: str) -> str:
    return f"{path.rpartition('.')[0]}-images"


def image_ending(data: bytes) -> str:
    """Return the file ending for an image's bytes, "bin" if the format is unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((ending for start, ending in SIGNATURES if data.startswith(start)), "bin")
