"""WebDataset tar shards: `KEY.json` and its images `KEY.0.png`, `KEY.1.jpg`, with an index for random access.

An image's path in the JSON is the name of a member. The index `FILE.tar.idx.json` holds the offset and size of each
member of each record. It is written with the shard, or when a shard without one is first opened, and can be deleted.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any

from vl2.data.record import Record, StoredImage
from vl2.data.store.entry import Found, Place, Problem, parse_json
from vl2.data.store.jsonl import image_ending
from vl2.data.store.locations import DataFile
from vl2.errors import UserError

INDEX_ENDING = ".idx.json"
INDEX_VERSION = 1
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class TarEntry:
    """The members of one record, as {ending: (offset, size)} in bytes."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_tar(file: DataFile) -> Iterator[Found]:
    """Yield every record or problem in order. After damaged bytes reading continues at the next intact member."""
    row = 0
    try:
        for item in scan(file):
            if isinstance(item, Problem):
                yield item
            else:
                yield read_entry(file, item, row)
                row += 1
    except (UserError, OSError) as error:
        yield _damage(file, str(error))


def read_entry(file: DataFile, entry: TarEntry, row: int) -> Found:
    """Read one record and its images. An entry without a JSON member is a problem."""
    place = Place(file=file.name, row=row, key=entry.key)
    if "json" not in entry.members:
        names = ", ".join(f"{entry.key}.{ending}" for ending in entry.members)
        return Problem(place=place, id=None, kind="unreadable", why=f"no {entry.key}.json beside {names:.200}")

    def read_member(name: str) -> bytes:
        ending = name.removeprefix(f"{entry.key}.")
        if name == ending or ending not in entry.members:
            raise UserError(f"no member {name!r:.200} in the tar")
        return _member(file, entry, ending)

    try:
        line = _member(file, entry, "json")
    except UserError as error:
        return Problem(place=place, id=None, kind="unreadable", why=str(error))
    return parse_json(line, place, read_member)


def _member(file: DataFile, entry: TarEntry, ending: str) -> bytes:
    offset, size = entry.members[ending]
    data = file.read(offset, offset + size) if size else b""
    if len(data) != size:
        raise UserError(f"{entry.key}.{ending} is truncated: it has {len(data)} of {size} bytes")
    return data


def scan(file: DataFile) -> Iterator[TarEntry | Problem]:
    """Yield an entry for each run of members with one key, and a problem for damage between them."""
    entry: TarEntry | None = None
    for member in _members(file):
        if isinstance(member, Problem):
            yield member
            continue
        key, ending = _split(member.name)
        if entry is not None and entry.key != key:
            yield entry
            entry = None
        entry = entry or TarEntry(key=key)
        if ending in entry.members:
            yield _damage(file, f"{member.name} occurs twice", key=key)
        else:
            entry.members[ending] = (member.offset_data, member.size)
    if entry is not None:
        yield entry


def _split(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last part, as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return folder + slash + key, ending


def _members(file: DataFile) -> Iterator[tarfile.TarInfo | Problem]:
    size, end = file.size(), 0
    with file.open() as raw:
        try:
            # Without ignore_zeros, a damaged header would silently end the iteration.
            with tarfile.open(fileobj=raw, mode="r:", ignore_zeros=True) as tar:
                while (member := tar.next()) is not None:
                    _forget_members(tar)
                    if lost := _unclaimed_bytes(file, end, member.offset):
                        yield lost
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    if member.isreg() and not member.issparse():
                        yield member
                    elif not member.isdir():
                        yield _damage(file, f"{member.name} is not a regular file")
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            yield _damage(file, f"the tar is damaged after byte {end}: {error}")
            return
    if lost := _unclaimed_bytes(file, end, size):
        yield lost


def _unclaimed_bytes(file: DataFile, start: int, end: int) -> Problem | None:
    """Return a problem if the bytes from `start` to `end`, which belong to no member, are not all zero."""
    step = 1 << 20
    for position in range(start, end, step):
        if file.read(position, min(position + step, end)).strip(b"\0"):
            return _damage(file, f"the tar is damaged: bytes {start} to {end} belong to no member")
    return None


def _damage(file: DataFile, why: str, key: str | None = None) -> Problem:
    return Problem(place=Place(file=file.name, key=key), id=None, kind="unreadable", why=why)


class TarRecords:
    """Random access to the records of a tar through its index file.

    If the index is missing or outdated, it is built, and saved if the folder is writable.
    """

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._entries = read_index(file) or write_index(file)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, index: int) -> Found:
        return read_entry(self._file, self._entries[index], index)


def write_index(file: DataFile, tar: DataFile | None = None) -> list[TarEntry]:
    """Scan a tar and write its index beside `file`. `tar` is the file to scan if it has not been renamed yet."""
    tar = tar or file
    entries = [item for item in scan(tar) if isinstance(item, TarEntry)]
    rows = [[entry.key, entry.members] for entry in entries]
    text = json.dumps({"version": INDEX_VERSION, "tar_bytes": tar.size(), "records": rows}, separators=(",", ":"))
    try:
        with file.beside(INDEX_ENDING).create() as out:
            out.write(text.encode("utf-8"))
    except UserError:
        pass  # the folder is read-only: the index stays in memory
    return entries


def read_index(file: DataFile) -> list[TarEntry] | None:
    """Return the entries of the index file; None if it is missing, damaged or of another version of the tar."""
    try:
        values = json.loads(file.beside(INDEX_ENDING).read())
        if values["version"] != INDEX_VERSION or values["tar_bytes"] != file.size():
            return None
        return [TarEntry(key=key, members=_ranges(members)) for key, members in values["records"]]
    except (UserError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _ranges(members: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {ending: (int(offset), int(size)) for ending, (offset, size) in members.items()}


def write_tar(records: Iterable[Record], out: IO[bytes], first: int = 0) -> None:
    """Write records under consecutive keys from `first`. The same records give the same bytes."""
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for number, record in enumerate(records, first):
            key = f"{number:09d}"
            images = []
            for index, image in enumerate(record.images):
                assert image.data is not None, record.id
                path = f"{key}.{index}.{image_ending(image.data)}"
                images.append((image.data, StoredImage(path=path, width=image.width, height=image.height)))
            values = replace(record, images=tuple(stored for _, stored in images)).to_dict()
            _add_member(tar, f"{key}.json", json.dumps(values, ensure_ascii=False).encode("utf-8"))
            for data, stored in images:
                _add_member(tar, str(stored.path), data)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group are 0
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    _forget_members(tar)


def _forget_members(tar: tarfile.TarFile) -> None:
    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member in memory
