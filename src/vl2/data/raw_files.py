"""Read the files of public datasets row by row (JSONL, Parquet, tar) and measure images without decoding them.

Large JSON files are read by `json_stream`.

The converters in `datasets/` use this. An error in one row is yielded in its place as a UserError and reading goes on;
a folder or file that is not in the expected layout raises UserError. Image paths are relative to the dataset's folder.
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

from vl2.data.json_stream import Row
from vl2.data.record import StoredImage
from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.process.tiling import Size

Json = dict[str, Any]

MAX_MEMBER_BYTES = 2**28  # of one file in a tar; a larger file is read as empty and then fails as an image
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_WIDTH, _ORIENTATION = 0x0100, 0x0112  # tags of TIFF and EXIF
_SIDES_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Return the files of the first pattern that matches any, sorted. Raise UserError if none does."""
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    raise UserError(f"{folder} is not in the layout: it has no {' and no '.join(patterns)}")


def find_file(folder: Path, *patterns: str) -> Path:
    """Return the only file of the first pattern that matches. Raise UserError if there is none or more than one."""
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
    """Return the content of a small JSON file, whole."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read as JSON: {error}") from None


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file. A line that is not valid JSON is yielded as a UserError."""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield f"{path.name} line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield f"{path.name} line {number}", UserError(f"not valid JSON: {error}")


def parquet_rows(paths: Iterable[Path], columns: Sequence[str], *, batch_rows: int = 32) -> Iterator[Row]:
    """Yield rows as dicts, with few in memory at a time. A file that cannot be read is yielded as one UserError."""
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
    """Return the Parquet shards of a split under the names that the Hugging Face hub uses."""
    return find_files(folder, f"{split}-*.parquet", f"data/{split}-*.parquet", f"{split}.parquet")


def measure(source: Path | bytes, name: str) -> Size:
    """Return (width, height) of the upright image from the file's header. Raise UserError if it cannot be read."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            return (height, width) if _swaps_sides(image) else (width, height)
    except FileNotFoundError:
        raise UserError(f"image {name} is not there") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {name} cannot be read: {type(error).__name__}") from None


def _swaps_sides(image: Image.Image) -> bool:
    """Return whether the EXIF orientation swaps width and height. Damaged EXIF data counts as upright."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # getexif() would decode the image to find an EXIF chunk at its end
    if isinstance(image, TiffImageFile) and image.width != image.tag_v2.get(_WIDTH):
        return False  # newer versions of Pillow already report the upright size of a TIFF
    try:
        return image.getexif().get(_ORIENTATION, 1) in _SIDES_SWAPPED
    except Exception:
        return False


def image_file(folder: Path, *names: str) -> StoredImage:
    """Return the first of these files that exists, with its path relative to `folder`.

    Names come from untrusted data: raise UserError for one that leads out of the folder.
    """
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise UserError(f"image {name!r} leads out of the folder")
    name = next((n for n in names if (folder / n).is_file()), names[0])
    width, height = measure(folder / name, name)
    return StoredImage(path=name, width=width, height=height)


def image_bytes(value: Any, name: str) -> StoredImage:
    """Return the image in a column's value: bytes, or the Hugging Face struct of bytes and path."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise UserError(f"image {name} has no bytes")
    width, height = measure(data, name)
    return StoredImage(data=data, width=width, height=height)


def tar_samples(path: Path) -> Iterator[Row]:
    """Yield the samples of a WebDataset tar as {ending: bytes}. Consecutive files with one stem form a sample."""
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
        return  # the last sample may be truncated
    if sample:
        yield f"{path.name} {key}", sample
