"""Every format gives back what was written, in order and at random, on disk and in an object store."""

from __future__ import annotations

import hashlib
import pickle
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.sample_records import good_records, grounded, page, picture, text_only, two_images
from vl2.data.record import CATEGORIES, Labeled, Message, Part, Record, StoredImage
from vl2.data.store import Located, Problem, open_random, read_records, write_records
from vl2.data.store.jsonl import read_jsonl
from vl2.data.store.locations import DataFile, find_files
from vl2.errors import UserError

pytest.importorskip("pyarrow")
MemoryFileSystem = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem

FORMATS = ("jsonl", "tar", "parquet")


def read_all(location: str) -> list[Record]:
    found = list(read_records(location))
    problems = [item for item in found if isinstance(item, Problem)]
    assert not problems
    return [item.record for item in found if isinstance(item, Located)]


@pytest.fixture(params=["folder", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("shard_records", [None, 1, 4, 100])
def test_records_come_back_from_every_format(ending: str, shard_records: int | None, root: str) -> None:
    records = [*good_records(8), two_images("pair"), page("page")]
    names = write_records(records, f"{root}/set.{ending}", shard_records=shard_records)
    assert len(names) == (1 if shard_records is None else -(-10 // shard_records))
    assert read_all(root) == records
    for by_number in (open_random(root), pickle.loads(pickle.dumps(open_random(root)))):
        assert len(by_number) == 10
        assert [by_number[i] for i in (7, 0, 9, -1)] == [records[i] for i in (7, 0, 9, -1)]
        assert by_number[2:5] == records[2:5]
        with pytest.raises(IndexError):
            by_number[10]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    images = tuple(
        StoredImage(data=draw(st.binary(min_size=1, max_size=40)), width=width, height=height)
        for width, height in draw(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=3))
    )
    parts = [Part(text=draw(texts)), *(Part(image=i) for i in range(len(images)))]
    objects = tuple(
        Labeled(image=i, label=draw(names), boxes_px=((0.25, 0.0, float(image.width), image.height / 3),))
        for i, image in enumerate(images)
    )
    return Record(
        id=draw(names),
        source=draw(names),
        category=draw(st.sampled_from(CATEGORIES)),
        language="en",
        licence="MIT",
        messages=(Message(role="user", parts=tuple(parts)), Message(role="assistant", parts=(Part(text=draw(texts)),))),
        images=images,
        objects=objects,
    )


@pytest.mark.parametrize("ending", FORMATS)
@given(records=st.lists(any_record(), max_size=4))
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_any_record_comes_back(ending: str, records: list[Record]) -> None:
    location = f"memory://{uuid.uuid4().hex}/a.{ending}"
    write_records(records, location)
    assert read_all(location) == records
    assert list(open_random(location)) == records


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_records_give_the_same_bytes(ending: str, tmp_path: Path) -> None:
    digests = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_records(good_records(8), f"{folder}/set.{ending}", shard_records=3)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append([(p.relative_to(folder), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("ending", FORMATS)
def test_nothing_is_overwritten_and_no_half_file_is_left(ending: str, tmp_path: Path) -> None:
    location = f"{tmp_path}/set.{ending}"

    def breaking() -> object:
        yield from good_records(5)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_records(breaking(), location, shard_records=2)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*"))
    write_records(good_records(5), location, shard_records=2)
    with pytest.raises(UserError, match="already exists"):
        write_records(good_records(1), location, shard_records=2)
    write_records(good_records(5), location)
    with pytest.raises(UserError, match=r"set\.\w+ already exists"):
        write_records(good_records(1), location)


def test_paths_of_images_are_read_when_records_are_written(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(picture(4, 5))
    values = grounded("x").to_dict()
    values["images"] = [{"path": "a b.png", "width": 40, "height": 30}]
    write_records([Record.from_dict(values)], f"{tmp_path}/out.tar", image_folder=str(tmp_path))
    assert read_all(f"{tmp_path}/out.tar")[0].images[0].data == picture(4, 5)
    with pytest.raises(UserError, match=r"record 'x': image 0: no file .*a b.png"):
        write_records([Record.from_dict(values)], f"{tmp_path}/two.tar", image_folder=f"{tmp_path}/none")


@pytest.mark.parametrize("path", ["../a.png", "/etc/hosts", "x/../../a", "https://x/a.png", "C:\\a.png", "", "a\0b"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_image_path_cannot_leave_the_folder_of_its_file(path: str, ending: str, tmp_path: Path) -> None:
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    from vl2.data.store.parquet import schema

    values = grounded("x").to_dict()
    values["images"] = [{"path": path, "width": 40, "height": 30}]
    file = tmp_path / f"a.{ending}"
    if ending == "jsonl":
        file.write_text(json.dumps(values))
    else:
        pq.write_table(pa.Table.from_pylist([values], schema=schema()), file)
    (found,) = read_records(str(file))
    assert isinstance(found, Problem)
    assert (found.kind, found.id) == ("image", "x")
    assert "must be relative and stay in the folder" in found.why


def test_half_a_character_is_refused_when_written(tmp_path: Path) -> None:
    values = {**text_only("x").to_dict(), "source": "a\ud83d"}
    for ending in FORMATS:
        with pytest.raises(UserError, match=r"record 'x': source has an unpaired surrogate \(U\+D83D\)"):
            write_records([Record.from_dict(values)], f"{tmp_path}/a.{ending}")


def test_locations(tmp_path: Path) -> None:
    for name in ("b/x.jsonl", "a.jsonl", "c.tar"):
        write_records([text_only(name)], f"{tmp_path}/{name}")
    (tmp_path / "notes.txt").write_text("no records")
    assert [file.name for file in find_files(f"{tmp_path}/")] == [
        f"{tmp_path}/{name}" for name in ("a.jsonl", "b/x.jsonl", "c.tar")
    ]
    assert [record.id for record in read_all(f"{tmp_path}/*.jsonl")] == ["a.jsonl"]
    assert len(open_random(f"{tmp_path}/a.jsonl", f"{tmp_path}/b")) == 2
    for location, says in (
        (f"{tmp_path}/none.jsonl", "no file or folder"),
        (f"{tmp_path}/notes.txt", "records are in files that end in .parquet, .tar, .jsonl"),
        (f"{tmp_path}/*.parquet", "no records at"),
        ("nothing://x/a.tar", "cannot reach nothing://x/a.tar: "),
    ):
        with pytest.raises(UserError, match=says):
            read_records(location)
    with pytest.raises(UserError, match=r"end in .parquet, .tar, .jsonl, got out\.zip"):
        write_records([], "out.zip")


def test_no_records_are_an_empty_file(tmp_path: Path) -> None:
    for ending in FORMATS:
        assert write_records([], f"{tmp_path}/a.{ending}", shard_records=5) == [f"{tmp_path}/a-00000.{ending}"]
    assert read_all(str(tmp_path)) == []
    assert len(open_random(str(tmp_path))) == 0


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records([text_only("x")], f"{tmp_path}/a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (lambda: list(read_records(str(tmp_path))), lambda: open_random(str(tmp_path))):
        with pytest.raises(UserError, match=r'Parquet needs pyarrow: pip install -e ".+\[data\]"'):
            call()


def test_text_that_is_not_utf8_spoils_its_own_row_of_parquet_only(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = good_records(6)
    write_records(records, f"{tmp_path}/a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    ids = [record.id.encode() for record in records]
    ids[2] = b"r\xff"
    damaged = pa.Array.from_buffers(pa.string(), 6, pa.array(ids, pa.binary()).buffers())
    pq.write_table(table.set_column(0, "id", damaged), tmp_path / "a.parquet")
    found = list(read_records(f"{tmp_path}/a.parquet"))
    by_number = open_random(f"{tmp_path}/a.parquet")
    for items in (found, [by_number.find(index) for index in range(6)]):
        assert [isinstance(item, Problem) for item in items] == [False, False, True, False, False, False]


def test_bytes_changed_anywhere_in_parquet_never_end_the_reading(tmp_path: Path) -> None:
    write_records(good_records(12), f"{tmp_path}/a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    for position in range(0, len(content), 23):
        spoiled = bytearray(content)
        for place, value in enumerate(b"\xff\x00\x81", position):
            if place < len(spoiled):
                spoiled[place] ^= value or 1
        (tmp_path / "a.parquet").write_bytes(spoiled)
        assert list(read_records(f"{tmp_path}/a.parquet"))
        try:
            by_number = open_random(f"{tmp_path}/a.parquet")
        except UserError:
            continue
        for index in range(min(len(by_number), 20)):
            by_number.find(index)


class EndpointConnectionError(Exception):
    __module__ = "botocore.exceptions"


class Unreachable:
    """A file system whose server does not answer, as the clients of object stores report it: not as an OSError."""

    def _fail(self, *_: object, **__: object) -> None:
        raise EndpointConnectionError("could not connect")

    size = exists = cat_file = open = mv = _fail


def test_what_the_client_of_an_object_store_raises_is_one_line() -> None:
    file = DataFile(fs=Unreachable(), path="bucket/a.tar", name="s3://bucket/a.tar")
    for ask in (file.size, file.exists, file.read, lambda: file.open().__enter__(), lambda: file.rename(file)):
        with pytest.raises(UserError, match=r"cannot reach s3://bucket/a\.tar: could not connect"):
            ask()
    assert "could not connect" in str(next(read_jsonl(file)))


class Buckets(MemoryFileSystem):
    """An object store: files need no folder, and to make one is to make a bucket."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError(f"made the bucket {path}")


@pytest.mark.parametrize("ending", FORMATS)
def test_no_bucket_is_made_where_a_file_needs_no_folder(ending: str) -> None:
    with DataFile(fs=Buckets(), path=f"/{uuid.uuid4().hex}/a.{ending}", name="a").create() as out:
        out.write(b"x")
