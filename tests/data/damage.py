"""A thousand damaged records of many kinds among good ones, in all three formats, made the same way each time."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.data.sample_records import grounded, picture, text_only

Json = dict[str, Any]
FIRST_GOOD = "jsonl-good-0"


def put(*path: Any, to: Any) -> Callable[[Json], Any]:
    """Return a damage that sets one value of the record."""

    def damage(values: Json) -> Json:
        place: Any = values
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return values

    return damage


def drop(*path: Any) -> Callable[[Json], Any]:
    def damage(values: Json) -> Json:
        place: Any = values
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return values

    return damage


def text(change: Callable[[str], str | bytes]) -> Callable[[Json], Any]:
    """Return a damage of the written JSON, as text or as bytes."""

    def damage(values: Json) -> bytes:
        changed = change(json.dumps(values, ensure_ascii=False))
        return changed if isinstance(changed, bytes) else changed.encode("utf-8")

    return damage


# The user message holds the image in part 0; the first answer is message 2, the last is message 4.
STRUCTURE: dict[str, Callable[[Json], Any]] = {
    **{f"null {key}": put(key, to=None) for key in ("id", "source", "category", "language", "licence", "messages")},
    "blank id": put("id", to="  "),
    "unknown category": put("category", to="pets"),
    "no messages": put("messages", to=[]),
    "unknown role": put("messages", 4, "role", to="bot"),
    "null role": put("messages", 1, "role", to=None),
    "question last": put("messages", 4, "role", to="user"),
    "image of the assistant": put("messages", 1, "role", to="assistant"),
    "empty content": put("messages", 4, "content", to=[]),
    "null content": put("messages", 2, "content", to=None),
    "unknown part": put("messages", 4, "content", to=[{"type": "audio", "text": None, "image": None}]),
    "text part without text": put("messages", 4, "content", to=[{"type": "text"}]),
    "image that is not there": put("messages", 1, "content", 0, "image", to=3),
    "image never used": put("messages", 1, "content", to=[{"type": "text", "text": "?"}]),
    "no images": put("images", to=[]),
    "null image": put("images", 0, to=None),
    "width 0": put("images", 0, "width", to=0),
    "null height": put("images", 0, "height", to=None),
    "no bytes and no path": put("images", 0, to={"width": 40, "height": 30}),
    "null object": put("objects", 0, to=None),
    "object in no image": put("objects", 0, "image", to=5),
    "blank label": put("objects", 0, "label", to=" "),
    "null label": put("objects", 0, "label", to=None),
    "null boxes": put("objects", 0, "boxes_px", to=None),
    "no box to name": put("objects", 0, "boxes_px", to=[]),
    "box outside": put("objects", 0, "boxes_px", 0, to=[1.0, 2.0, 900.0, 10.0]),
    "box below 0": put("objects", 0, "boxes_px", 0, to=[-1.0, 2.0, 9.0, 10.0]),
    "box reversed": put("objects", 0, "boxes_px", 0, to=[9.0, 2.0, 1.0, 10.0]),
    "box of 3": put("objects", 0, "boxes_px", 0, to=[1.0, 2.0, 3.0]),
    "box of NaN": put("objects", 0, "boxes_px", 0, to=[1.0, float("nan"), 3.0, 4.0]),
    "box without end": put("objects", 0, "boxes_px", 0, to=[1.0, 2.0, float("inf"), 4.0]),
    "null box": put("objects", 0, "boxes_px", 0, to=None),
    "null coordinate": put("objects", 0, "boxes_px", 0, to=[1.0, None, 3.0, 4.0]),
    "placeholder of no object": put("messages", 4, "content", to=[{"type": "text", "text": "{box:9}"}]),
    "same id": put("id", to=FIRST_GOOD),
    "text with an image": put("category", to="text"),
    "tag in a label": put("objects", 0, "label", to="a<|/ref|>b"),
    "another width": put("images", 0, "width", to=77),
    "another height": put("images", 0, "height", to=78),
}
JSON_ONLY: dict[str, Callable[[Json], Any]] = {
    **{f"no {key}": drop(key) for key in ("id", "source", "category", "language", "licence", "messages")},
    "unknown key": put("extra", to=1),
    "number as id": put("id", to=7),
    "list as source": put("source", to=["a"]),
    "object as role": put("messages", 4, "role", to={"a": 1}),
    "text as messages": put("messages", to="hi"),
    "object as images": put("images", to={"0": 1}),
    "text as box": put("objects", 0, "boxes_px", 0, to="1 2 3 4"),
    "text as coordinate": put("objects", 0, "boxes_px", 0, to=[1, 2, "3", 4]),
    "whole number too large": put("objects", 0, "boxes_px", 0, to=[1, 2, 10**400, 4]),
    "index as text": put("messages", 1, "content", 0, "image", to="0"),
    "width of 1.5": put("images", 0, "width", to=1.5),
    "half a character": put("messages", 4, "content", to="a\ud83d"),
    "cut in half": text(lambda line: line[: len(line) // 2]),
    "two on a line": text(lambda line: line + line),
    "no JSON": text(lambda _: "id: x"),
    "not UTF-8": text(lambda line: line.encode("utf-8").replace(b"made", b"\xff\xfe")),
    "a list": text(lambda line: f"[{line}]"),
    "a text": text(lambda _: '"record"'),
    "null": text(lambda _: "null"),
    "nested without end": text(lambda _: "[" * 100_000),
    "a number of 9000 digits": text(lambda _: f'{{"id": {"9" * 9000}}}'),
    "bytes that are no base64": put("images", 0, to={"bytes": "%%%", "width": 40, "height": 30}),
    "bytes and path": put("images", 0, to={"bytes": "AAAA", "path": "a.png", "width": 40, "height": 30}),
    "missing image": put("images", 0, "path", to="images/none.png"),
    "path outside": put("images", 0, "path", to="../../secret.png"),
    "absolute path": put("images", 0, "path", to="/etc/passwd"),
    "URL as path": put("images", 0, "path", to="http://127.0.0.1/a.png"),
    "folder as image": put("images", 0, "path", to="images"),
}
PIXELS: dict[str, Callable[[bytes], bytes]] = {
    "truncated image": lambda data: data[: len(data) // 2],
    "no image": lambda _: b"<html>not found</html>",
    "empty image": lambda _: b"",
    "damaged header": lambda data: b"\0" * 16 + data[16:],
    "damaged pixels": lambda data: data[:45] + b"\xff" * 20 + data[65:],
    "another size": lambda _: picture(11, 12),
    "lying on its side": lambda _: picture(30, 40),
    "only a signature": lambda data: data[:8],
}


@dataclass(kw_only=True)
class Expected:
    """What must come out of the folder."""

    good: list[str] = field(default_factory=list)  # ids
    bad: dict[str, str] = field(default_factory=dict)  # place to kind of damage


def plain(name: str) -> tuple[Json, bytes]:
    """Return a good record without its image's bytes, and those."""
    record = grounded(name)
    values = record.to_dict()
    values["images"] = [{"path": "", "width": record.images[0].width, "height": record.images[0].height}]
    data = record.images[0].data
    assert data is not None
    return values, data


def write_jsonl(folder: Path, count: int, expected: Expected) -> None:
    damages = [*STRUCTURE.items(), *JSON_ONLY.items()]
    images = folder / "images"
    images.mkdir()
    lines: list[bytes] = []
    path = folder / "a.jsonl"
    for number in range(count):
        lines.append(json.dumps(_good(f"jsonl-good-{number}", images, expected)).encode())
        values, data = plain(f"jsonl-bad-{number}")
        values["images"][0]["path"] = f"images/bad-{number}.png"
        choice = number % (len(damages) + len(PIXELS))
        if choice < len(damages):
            kind, damage = damages[choice]
            written = damage(copy.deepcopy(values))
        else:
            kind, spoil = list(PIXELS.items())[choice - len(damages)]
            written, data = values, spoil(data)
        (images / f"bad-{number}.png").write_bytes(data)
        lines.append(written if isinstance(written, bytes) else json.dumps(written).encode())
        expected.bad[f"{path}:{len(lines)}"] = kind
    path.write_bytes(b"\n".join(lines))


def _good(name: str, images: Path, expected: Expected) -> Json:
    values, data = plain(name)
    values["images"][0]["path"] = f"images/{name}.png"
    (images / f"{name}.png").write_bytes(data)
    expected.good.append(name)
    return values


def write_tar(folder: Path, count: int, expected: Expected) -> None:
    """Damage members, headers and what is in them; the last record is cut off."""
    path = folder / "b.tar"
    damages = [*STRUCTURE.items(), *JSON_ONLY.items()]
    tar_kinds = ("no json", "no member for the image", "damaged json header", "damaged image header")
    spoiled: list[int] = []
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            values, data = plain(f"tar-good-{number}")
            _add_record(tar, f"good{number}", values, data)
            expected.good.append(values["id"])
            key = f"bad{number}"
            expected.bad[f"{path}:{key}"] = _add_damaged(tar, key, number, damages, tar_kinds, spoiled)
        values, data = plain("tar-cut")
        expected.bad[f"{path}:cut"] = "cut off"
        _add_record(tar, "cut", values, data)
        end = tar.offset
    content = bytearray(path.read_bytes())
    for offset in spoiled:
        content[offset : offset + 40] = b"\x55" * 40
    path.write_bytes(content[: end - 512 + 20])


def _add_damaged(
    tar: tarfile.TarFile, key: str, number: int, damages: list[Any], tar_kinds: tuple[str, ...], spoiled: list[int]
) -> str:
    values, data = plain(f"tar-{key}")
    values["images"][0]["path"] = f"{key}.0.png"
    choice = number % (len(damages) + len(PIXELS) + len(tar_kinds))
    if choice < len(damages):
        kind, damage = damages[choice]
        written = damage(copy.deepcopy(values))
        _add(tar, f"{key}.json", written if isinstance(written, bytes) else json.dumps(written).encode())
        _add(tar, f"{key}.0.png", data)
        return str(kind)
    if choice < len(damages) + len(PIXELS):
        kind, spoil = list(PIXELS.items())[choice - len(damages)]
        _add_record(tar, key, values, spoil(data))
        return kind
    kind = tar_kinds[choice - len(damages) - len(PIXELS)]
    if kind == "damaged json header":
        spoiled.append(tar.offset)
    if kind != "no json":
        _add(tar, f"{key}.json", json.dumps(values).encode())
    if kind == "damaged image header":
        spoiled.append(tar.offset)
    if kind != "no member for the image":
        _add(tar, f"{key}.0.png", data)
    return kind


def _add_record(tar: tarfile.TarFile, key: str, values: Json, data: bytes) -> None:
    values["images"][0]["path"] = f"{key}.0.png"
    _add(tar, f"{key}.json", json.dumps(values).encode())
    _add(tar, f"{key}.0.png", data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_parquet(folder: Path, count: int, expected: Expected) -> None:
    """Damage rows; then one row group of another file, which loses all its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vl2.data.store.parquet import schema

    rows: list[Json] = []
    path = folder / "c.parquet"
    damages = list(STRUCTURE.items())
    for number in range(count):
        for name in (f"parquet-good-{number}", f"parquet-bad-{number}"):
            values, data = plain(name)
            values["images"][0] |= {"path": None, "bytes": data}
            rows.append(values)
        expected.good.append(f"parquet-good-{number}")
        choice = number % (len(damages) + len(PIXELS))
        if choice < len(damages):
            kind, damage = damages[choice]
            rows[-1] = damage(copy.deepcopy(rows[-1]))
        else:
            kind, spoil = list(PIXELS.items())[choice - len(damages)]
            rows[-1]["images"][0]["bytes"] = spoil(rows[-1]["images"][0]["bytes"])
        expected.bad[f"{path}:{len(rows)}"] = kind
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), path, row_group_size=32)
    _write_damaged_group(folder / "d.parquet", expected)


def _write_damaged_group(path: Path, expected: Expected) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vl2.data.store.parquet import schema

    rows = [text_only(f"group-{number}").to_dict() for number in range(30)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), path, row_group_size=10)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    for number in range(30):
        if 10 <= number < 20:
            expected.bad[f"{path}:{number + 1}"] = "damaged row group"
        else:
            expected.good.append(f"group-{number}")


def write_damaged_folder(folder: Path) -> Expected:
    """Write the files and return what must be found in them: a thousand bad records, and about as many good."""
    expected = Expected()
    write_jsonl(folder, 440, expected)
    write_tar(folder, 309, expected)
    write_parquet(folder, 240, expected)
    return expected
