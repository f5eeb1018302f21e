"""Find, read and write files of records on any file system that fsspec supports.

A location is a file, a folder, a glob or an fsspec URL (memory://, s3://, gs://, https://).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.process.image import ImageOptions

Format = Literal["parquet", "tar", "jsonl"]
ENDINGS: dict[str, Format] = {".parquet": "parquet", ".tar": "tar", ".jsonl": "jsonl"}
PART = ".part"  # ending of a file that is being written

_MAX_IMAGE_BYTES = ImageOptions().max_bytes
# The packages behind fsspec's object stores. They report an unreachable endpoint, for example, not as an OSError.
_CLIENTS = ("botocore", "aiobotocore", "s3fs", "aiohttp", "google", "gcsfs", "azure", "adlfs")


@contextmanager
def needs_extra(what: str) -> Iterator[None]:
    """Convert an ImportError to a UserError that says what to install."""
    try:
        yield
    except ImportError as error:
        package = error.name or str(error)
        raise UserError(f"{what} needs {package}: {install_extra('data')}") from None


@contextmanager
def client_errors(name: str) -> Iterator[None]:
    """Convert the exceptions of an object store's client, except OSError, to a UserError that names the file."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise UserError(f"cannot reach {name}: {error}") from None


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Convert the exceptions of a file system to a UserError that names the file."""
    try:
        with client_errors(name):
            yield
    except FileNotFoundError:
        raise UserError(f"no file {name}") from None
    except FileExistsError:
        raise UserError(f"{name} already exists") from None
    except OSError as error:
        raise UserError(f"cannot reach {name}: {error.strerror or error}") from None


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of records. It keeps no open handle, so threads, forked processes and pickles may share it."""

    fs: Any  # an fsspec file system
    path: str
    name: str  # as the user wrote it

    @property
    def format(self) -> Format:
        return format_of(self.name)

    def size(self) -> int:
        with storage_errors(self.name):
            return int(self.fs.size(self.path))

    def exists(self) -> bool:
        with storage_errors(self.name):
            return bool(self.fs.exists(self.path))

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` up to `end`, or fewer if the file is shorter."""
        with storage_errors(self.name):
            return cast(bytes, self.fs.cat_file(self.path, start=start, end=end))

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        with storage_errors(self.name):
            file = self.fs.open(self.path, "rb")
        with client_errors(self.name), file:
            yield file

    def beside(self, ending: str) -> DataFile:
        """Return the file with this file's name plus an ending."""
        return DataFile(fs=self.fs, path=self.path + ending, name=self.name + ending)

    def within_folder(self, path: str) -> DataFile:
        """Return a file in this file's folder.

        Records are untrusted: raise UserError for a path that leaves the folder.
        """
        parts = path.replace("\\", "/").split("/")
        if not path or path.startswith("/") or ".." in parts or ":" in parts[0] or "\0" in path:
            raise UserError(f"path must be relative and stay in the folder of its file, got {path!r:.200}")
        folder, name_folder = posixpath.dirname(self.path), posixpath.dirname(self.name)
        return DataFile(fs=self.fs, path=posixpath.join(folder, *parts), name=posixpath.join(name_folder, *parts))

    def read_image(self, path: str) -> bytes:
        """Return the bytes of an image that a record of this file names. Raise UserError if it cannot be read."""
        data = self.within_folder(path).read(0, _MAX_IMAGE_BYTES + 1)
        if len(data) > _MAX_IMAGE_BYTES:
            raise UserError(f"{path} is larger than the limit of {_MAX_IMAGE_BYTES} bytes")
        return data

    @contextmanager
    def create(self) -> Iterator[IO[bytes]]:
        """Open the file for writing, and create its folder if necessary."""
        with storage_errors(self.name), self._open_new() as out:
            yield out

    def _open_new(self) -> AbstractContextManager[IO[bytes]]:
        # Create the folder only if opening fails without it: in an object store makedirs() would create a bucket
        # even if its name was mistyped.
        with suppress(FileNotFoundError):
            return cast("IO[bytes]", self.fs.open(self.path, "wb"))
        self.fs.makedirs(posixpath.dirname(self.path), exist_ok=True)
        return cast("IO[bytes]", self.fs.open(self.path, "wb"))

    def rename(self, to: DataFile) -> None:
        with storage_errors(to.name):
            self.fs.mv(self.path, to.path)

    def remove(self) -> None:
        """Remove the file, or the folder with all its contents. A missing file is not an error."""
        with suppress(OSError):
            self.fs.rm(self.path, recursive=True)


def format_of(name: str) -> Format:
    """Return the format of a file name by its ending. Raise UserError if the ending is unknown."""
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), None)
    if ending is None:
        raise UserError(f"records are in files that end in {', '.join(ENDINGS)}, got {name}")
    return ENDINGS[ending]


def data_file(location: str) -> DataFile:
    """Return the file at a location, whether or not it exists. Raise UserError if fsspec does not support it."""
    with needs_extra("reading records"):
        from fsspec.core import url_to_fs
    try:
        fs, path = url_to_fs(location)
    except (ImportError, ValueError) as error:  # a protocol that is unknown, or whose package is missing
        raise UserError(f"cannot reach {location}: {error}") from None
    return DataFile(fs=fs, path=path, name=location)


def find_files(location: str) -> list[DataFile]:
    """Return the files of records at a location, sorted by name. Folders are searched recursively.

    Raise UserError if there are none.
    """
    root = data_file(location)
    with storage_errors(location):
        if root.fs.isfile(root.path):
            format_of(location)
            return [root]
        if root.fs.isdir(root.path):
            paths = root.fs.find(root.path)
        elif any(sign in location for sign in "*?["):
            paths = root.fs.glob(root.path)
        else:
            raise UserError(f"no file or folder {location}")
    base = location[: len(location) - len(root.path)] if location.endswith(root.path) else None
    files = [
        DataFile(fs=root.fs, path=path, name=_name(root, path, base))
        for path in sorted(paths)
        if path.lower().endswith(tuple(ENDINGS))
    ]
    if not files:
        raise UserError(f"no records at {location}: they are in files that end in {', '.join(ENDINGS)}")
    return files


def _name(root: DataFile, path: str, base: str | None) -> str:
    """Return a path in the notation in which the user wrote the location."""
    if base is not None:
        return base + path
    if path.startswith(root.path.rstrip("/") + "/"):
        return posixpath.join(root.name, path[len(root.path.rstrip("/")) + 1 :])
    return path
