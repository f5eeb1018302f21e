"""Reading files that are not stores of records: JSON, JSONL, Parquet and tar row by row, images measured undecoded.

What is wrong with one row takes that row's place as a UserError, and the rest goes on; only a folder or file that is
not in the layout at all raises one. Image paths are relative to the folder.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from vl2.data.record import StoredImage
from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.process.tiling import Size

Json = dict[str, Any]
Row = tuple[str, Any]  # where it is, and what it holds: a row, or the UserError that reading it gave

MAX_MEMBER_BYTES = 2**28  # of a file in a tar; a larger one is read as empty, and so as no image
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_WIDTH, _ORIENTATION = 0x0100, 0x0112  # of TIFF and EXIF
_TURNED = (5, 6, 7, 8)  # the orientations that swap width and height


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Return what the first pattern that matches anything matches, sorted."""
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    raise UserError(f"{folder} is not in the layout: it has no {' and no '.join(patterns)}")


def find_file(folder: Path, *patterns: str) -> Path:
    """Return the one file that the first matching pattern matches."""
    found = find_files(folder, *patterns)
    if len(found) > 1:
        raise UserError(f"{folder} has several files that fit, give the split: {', '.join(p.name for p in found[:5])}")
    return found[0]


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path.name} cannot be read: {type(error).__name__}") from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read as JSON: {error}") from None


def read_list(path: Path, *keys: str) -> list[Row]:
    """Return the entries of the list in a JSON file: the file itself, or what lies under the keys."""
    return list_in(read_json(path), path.name, *keys)


def list_in(content: Any, name: str, *keys: str) -> list[Row]:
    """Return the entries of a list in the content of a JSON file of this name."""
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{name} is not in the layout: it must hold an object with {key}")
        content = content[key]
    if not isinstance(content, list):
        raise UserError(f"{name} is not in the layout: it must hold a list, got {type(content).__name__}")
    return [(f"{name} entry {i}", row) for i, row in enumerate(content)]


def index_by(rows: Iterable[Row], key: str) -> dict[Any, Json]:
    """Return the entries by one of their fields. One without it is missed where it is asked for."""
    return {row[key]: row for _, row in rows if isinstance(row, dict) and isinstance(row.get(key), int | str)}


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yield the lines of a JSONL file; a line that is no JSON is an error of that line."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"{path.name} line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield f"{path.name} line {number}", UserError(f"not valid JSON: {error}")


def parquet_rows(paths: Iterable[Path], columns: Sequence[str], *, batch_rows: int = 32) -> Iterator[Row]:
    """Yield rows as dicts, a few in memory at a time; a file that cannot be read is one error."""
    try:
        import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]
        from pyarrow import ArrowException
    except ImportError:
        raise UserError(f"reading Parquet needs pyarrow: {install_extra('data')}") from None
    for path in paths:
        number = 0
        try:
            with pq.ParquetFile(path) as file:
                missing = [name for name in columns if name not in file.schema_arrow.names]
                if missing:
                    raise UserError(f"has no column {missing[0]}, it has {', '.join(file.schema_arrow.names)}")
                for batch in file.iter_batches(batch_size=batch_rows):
                    for row in batch.to_pylist():
                        yield f"{path.name} row {number}", row
                        number += 1
        except UserError as error:
            yield path.name, error
        except (OSError, ArrowException) as error:
            yield f"{path.name} row {number}", UserError(f"the file cannot be read: {error}".splitlines()[0])


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Return the shards of a split, named as the Hugging Face hub names them."""
    return find_files(folder, f"{split}-*.parquet", f"data/{split}-*.parquet", f"{split}.parquet")


def measure(source: Path | bytes, name: str) -> Size:
    """Return (width, height) of the upright picture, from the file's header."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            return (height, width) if _is_turned(image) else (width, height)
    except FileNotFoundError:
        raise UserError(f"image {name} is not there") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {name} cannot be read: {type(error).__name__}") from None


def _is_turned(image: Image.Image) -> bool:
    """Say whether the EXIF data swaps width and height. Damaged EXIF data is no reason to refuse a good picture."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # getexif() would decode the picture to look for the data at its end
    if isinstance(image, TiffImageFile) and image.width != image.tag_v2.get(_WIDTH):
        return False  # newer versions of Pillow give the upright size of a TIFF by themselves
    try:
        return image.getexif().get(_ORIENTATION, 1) in _TURNED
    except Exception:
        return False


def image_file(folder: Path, *names: str) -> StoredImage:
    """Return the first of these files that exists, by its path relative to `folder`.

    Names come from the data, so none may lead out of the folder.
    """
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise UserError(f"image {name!r} leads out of the folder")
    name = next((n for n in names if (folder / n).is_file()), names[0])
    width, height = measure(folder / name, name)
    return StoredImage(path=name, width=width, height=height)


def image_bytes(value: Any, name: str) -> StoredImage:
    """Return an image kept in a column: bytes, or the hub's struct of bytes and path."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise UserError(f"image {name} has no bytes")
    width, height = measure(data, name)
    return StoredImage(data=data, width=width, height=height)


def tar_samples(path: Path) -> Iterator[Row]:
    """Yield the samples of a WebDataset tar as {ending: bytes}: neighboring files of one name are one sample."""
    key = ""
    sample: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                stem, _, ending = member.name.rpartition("/")[2].partition(".")
                if stem != key and sample:
                    yield f"{path.name} {key}", sample
                    sample = {}
                key = stem
                content = archive.extractfile(member) if member.size <= MAX_MEMBER_BYTES else None
                sample[f".{ending.lower()}"] = content.read() if content else b""
    except (OSError, tarfile.TarError) as error:
        yield path.name, UserError(f"the archive cannot be read: {error}")
        return  # what was read of the last sample may be cut short
    if sample:
        yield f"{path.name} {key}", sample
