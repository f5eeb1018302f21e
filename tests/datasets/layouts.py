"""The fixtures as a converter meets them: a copy of the committed text files, with small pictures drawn beside them."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl2.data.locate_phrases import ABSENT
from vl2.data.record import Record
from vl2.datasets import RowProblem, convert

FIXTURES = Path(__file__).parent / "fixtures"
SIZE = (64, 48)


def picture(size: tuple[int, int] = SIZE, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "gray").save(stream, format)
    return stream.getvalue()


def layout(tmp_path: Path, name: str, images: Iterable[str] = ()) -> Path:
    """Copy a fixture and draw the images that it names."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(picture())
    return folder


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(list(rows)), path)


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def read(name: str, folder: Path, **settings: Any) -> tuple[list[Record], list[RowProblem]]:
    """Convert, and hold what holds for every set: unique ids, valid records, problems of one line."""
    made = list(convert(name, folder, **settings))
    records = [m for m in made if isinstance(m, Record)]
    problems = [m for m in made if isinstance(m, RowProblem)]
    assert len({record.id for record in records}) == len(records)
    assert all("\n" not in problem.why for problem in problems)
    for record in records:
        record.to_turns([b""] * len(record.images))
        assert Record.from_dict(record.to_dict()) == record
        assert record.source == name
    return records, problems


def said(record: Record) -> list[str]:
    """Return the text of each message, an image as `<0>`."""
    return ["".join(f"<{p.image}>" if p.text is None else p.text for p in m.parts) for m in record.messages]


def queries(records: Iterable[Record]) -> dict[str, list[tuple[float, ...]] | None]:
    """Return the boxes of every query of some records, None for what is absent."""
    found: dict[str, list[tuple[float, ...]] | None] = {}
    for record in records:
        found.update((labeled.label, list(labeled.boxes_px) or None) for labeled in record.objects)
        answers = {
            wording.replace("{label}", labeled.label)
            for labeled in record.objects
            for wording in (*ABSENT["en"], *ABSENT["zh"])
        }
        absent = [text for text in said(record) if text in answers]
        assert len(absent) == sum(not labeled.boxes_px for labeled in record.objects)
    return found
