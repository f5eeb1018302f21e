"""Passages of a large text corpus, chosen at random without loading it: text files, Parquet files or folders of them.

Wikipedia and FineWeb on the Hugging Face hub are Parquet files with a column `text`; WikiText is text files. A passage
is a line of a text file, or a line of a `text` cell. The memory used does not depend on the size of the corpus.
"""

from __future__ import annotations

import bisect
import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from vl2.errors import UserError
from vl2.optional_imports import install_extra

MIN_PASSAGE = 20  # characters; shorter lines of an article are headings and entries of lists
ATTEMPTS = 200
TEXT_BYTES_AT_ONCE = 1 << 16  # read around a random position of a text file
CACHED_ROW_GROUPS = 4  # of all Parquet files; a row group of Wikipedia or FineWeb has 1,000 rows, some megabytes

# Special tokens and placeholders. In a text they would be parsed as such when a record is encoded.
MARKERS = ("<|", "<image>", "{box:", "<｜")


class _File(Protocol):
    @property
    def weight(self) -> int:
        """The file's size in bytes."""
        ...

    def choose(self, rng: random.Random) -> str:
        """Return a random line, possibly an unsuitable one."""
        ...


@dataclass(frozen=True)
class Corpus:
    """Files of a corpus. `choose` picks a file in proportion to its bytes, then a passage in it."""

    name: str
    files: tuple[_File, ...]

    def choose(self, rng: random.Random, *, min_chars: int = MIN_PASSAGE) -> str:
        """Return a random passage without special tokens. Raise UserError if none is found in ATTEMPTS attempts."""
        bounds = list(accumulate(file.weight for file in self.files))
        for _ in range(ATTEMPTS):
            file = self.files[bisect.bisect_right(bounds, rng.randrange(bounds[-1]))]
            passage = " ".join(file.choose(rng).split())
            if len(passage) >= min_chars and not any(marker in passage for marker in MARKERS):
                return passage
        raise UserError(f"{self.name} has hardly any passage of {min_chars} characters or more")


@dataclass(frozen=True)
class _TextFile:
    path: Path
    weight: int

    def choose(self, rng: random.Random) -> str:
        # The line after a random position. Long lines precede a position more often, but their followers do not.
        with self.path.open("rb") as file:
            start = rng.randrange(self.weight)
            file.seek(start)
            part = file.read(TEXT_BYTES_AT_ONCE)
            if start:
                part = part.partition(b"\n")[2] or _first_line(self.path)
        return part.partition(b"\n")[0].decode("utf-8", errors="ignore")


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(TEXT_BYTES_AT_ONCE)


@dataclass(frozen=True)
class _ParquetFile:
    path: Path
    weight: int
    row_groups: int

    def choose(self, rng: random.Random) -> str:
        texts = _row_group(str(self.path), rng.randrange(self.row_groups))
        if not texts:
            return ""
        lines = [line for line in rng.choice(texts).splitlines() if line.strip()]
        return rng.choice(lines) if lines else ""


@lru_cache(maxsize=CACHED_ROW_GROUPS)
def _row_group(path: str, index: int) -> tuple[str, ...]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped, unused-ignore]

    try:
        with ParquetFile(path) as file:
            cells: list[Any] = file.read_row_group(index, columns=["text"]).column("text").to_pylist()
    except (OSError, ArrowException) as error:
        raise UserError(f"cannot read the texts {path}: {error}".splitlines()[0]) from None
    return tuple(cell for cell in cells if isinstance(cell, str))


@lru_cache(maxsize=16)
def open_corpus(path: str) -> Corpus:
    """Open a .txt or .parquet file, or all of them in a folder and its subfolders.

    Raise UserError if nothing there can be read, or if a Parquet file has no column `text`.
    """
    place = Path(path)
    if place.is_dir():
        paths = sorted(file for file in place.rglob("*") if file.suffix.lower() in (".txt", ".parquet"))
    else:
        paths = [place]
    try:
        files = tuple(_open(file) for file in paths if file.stat().st_size)
    except OSError as error:
        raise UserError(f"cannot read the texts {path}: {error.strerror}") from None
    if not files:
        raise UserError(f"{path} holds no passage: .txt files with a passage per line, or .parquet files with a column "
                        "text are needed")  # fmt: skip
    return Corpus(name=path, files=files)


def _open(path: Path) -> _File:
    size = path.stat().st_size
    if path.suffix.lower() != ".parquet":
        return _TextFile(path, size)
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"reading Parquet needs pyarrow: {install_extra('data')}") from None
    try:
        with ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UserError(f"{path} has no column text, it has {', '.join(file.schema_arrow.names)}")
            return _ParquetFile(path, size, file.metadata.num_row_groups)
    except (OSError, ArrowException) as error:
        raise UserError(f"cannot read the texts {path}: {error}".splitlines()[0]) from None
