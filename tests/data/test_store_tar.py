"""The index of a tar is only a shortcut: made when it is missing, never believed when it does not fit."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.data.sample_records import good_records
from vl2.data.store import Located, Problem, open_random, read_records, write_records
from vl2.errors import UserError

RECORDS = good_records(6)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_records(RECORDS, f"{tmp_path}/a.tar")
    return tmp_path / "a.tar"


def index_of(shard: Path) -> Path:
    return shard.with_name("a.tar.idx.json")


def test_the_shard_is_plain_webdataset(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        assert {member.mtime for member in tar} == {0}
    assert names[:4] == ["000000000.json", "000000000.0.png", "000000001.json", "000000001.0.jpg"]


def test_the_index_says_where_members_lie(shard: Path) -> None:
    values = json.loads(index_of(shard).read_text())
    assert values["tar_bytes"] == shard.stat().st_size
    key, members = values["records"][0]
    offset, size = members["0.png"]
    assert key == "000000000"
    assert shard.read_bytes()[offset : offset + size] == RECORDS[0].images[0].data


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"version": 1, "tar_bytes": 5, "records": []}', "\xff"])
def test_an_index_that_does_not_fit_is_made_anew(shard: Path, content: str | None) -> None:
    right = index_of(shard).read_text()
    index_of(shard).unlink() if content is None else index_of(shard).write_bytes(content.encode("latin-1"))
    assert list(open_random(str(shard))) == RECORDS
    assert index_of(shard).read_text() == right


def test_an_index_that_lies_gives_a_problem_not_wrong_data(shard: Path) -> None:
    values = json.loads(index_of(shard).read_text())
    values["records"][0][1]["json"] = [0, 100]
    values["records"][1][1]["0.jpg"] = [1 << 40, 100]
    index_of(shard).write_text(json.dumps(values))
    records = open_random(str(shard))
    with pytest.raises(UserError, match=r"a.tar:000000000 unreadable: not JSON"):
        records[0]
    with pytest.raises(UserError, match=r"a.tar:000000001 \[r1\] image: image 0: .* is truncated"):
        records[1]
    assert [r.id for r in records[2:]] == [r.id for r in RECORDS[2:]]
    # Reading in order looks at the tar itself.
    assert [item.record for item in read_records(str(shard)) if isinstance(item, Located)] == RECORDS


def test_joined_tars_and_other_writers_are_read(shard: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined.tar"
    joined.write_bytes(shard.read_bytes() + shard.read_bytes())
    assert [item.record for item in read_records(str(joined)) if isinstance(item, Located)] == RECORDS * 2
    folder = tmp_path / "unpacked"
    with tarfile.open(shard) as tar:
        tar.extractall(folder, filter="data")
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        other = tmp_path / f"other{number}.tar"
        with tarfile.open(other, "w", format=form) as tar:
            tar.add(folder, arcname="x" * 120)  # a folder, and names too long for the plain header
        # Images are named as members, and the folder is a part of the name.
        found = list(read_records(str(other)))
        assert len(found) == len(RECORDS)
        assert sum(isinstance(item, Located) for item in found) == sum(not r.images for r in RECORDS)
    shutil.rmtree(folder)


def test_links_and_members_twice_are_named(tmp_path: Path) -> None:
    text = json.dumps(RECORDS[3].to_dict()).encode()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            member = tarfile.TarInfo("k.json")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
        link = tarfile.TarInfo("k.0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
        tar.addfile(link)
    found = list(read_records(str(tmp_path / "a.tar")))
    assert [item.record.id for item in found if isinstance(item, Located)] == ["r3"]
    whys = [item.why for item in found if isinstance(item, Problem)]
    assert whys == ["k.json occurs twice", "k.0.png is not a regular file"]


@pytest.mark.parametrize("content", [b"", b"x", b"no tar at all" * 1000, b"\0" * 5000])
@pytest.mark.parametrize("ending", ["tar", "parquet", "jsonl"])
def test_what_is_no_file_of_records_is_a_problem_and_the_next_file_is_read(
    content: bytes, ending: str, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / f"a.{ending}").write_bytes(content)
    write_records(RECORDS, f"{tmp_path}/b.jsonl")
    found = list(read_records(str(tmp_path)))
    assert [item.record for item in found if isinstance(item, Located)] == RECORDS
    problems = [item for item in found if isinstance(item, Problem)]
    is_empty = (ending, content) in {("jsonl", b""), ("tar", b"\0" * 5000)}
    assert bool(problems) is not is_empty
    assert all(item.kind == "unreadable" and item.place.file.endswith(f"a.{ending}") for item in problems)


def test_a_cut_anywhere_loses_only_what_is_cut_and_says_so(shard: Path, tmp_path: Path) -> None:
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        ends = [member.offset_data + member.size for member in tar if not member.name.endswith(".json")]
        last = max(member.offset_data + member.size for member in tar)
    for cut in range(1, last + 40, 97):
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        found = list(read_records(str(tmp_path / "cut.tar")))
        whole = [item.record for item in found if isinstance(item, Located)]
        assert whole == RECORDS[: len(whole)]
        assert len(whole) >= sum(end <= cut for end in ends)
        # A cut between two records cannot be seen: a tar does not say how many it holds.
        is_between = not content[cut - 1 : cut].strip(b"\0") or len(whole) == len(RECORDS)
        assert is_between or any(isinstance(item, Problem) for item in found), cut


def test_bytes_changed_anywhere_never_end_the_reading(shard: Path, tmp_path: Path) -> None:
    content = shard.read_bytes()
    for position in range(0, len(content), 131):
        spoiled = bytearray(content)
        spoiled[position : position + 3] = b"\xfe\xff\xfd"
        (tmp_path / "spoiled.tar").write_bytes(spoiled)
        found = list(read_records(str(tmp_path / "spoiled.tar")))
        ids = [item.record.id for item in found if isinstance(item, Located)]
        assert len(set(ids) & {record.id for record in RECORDS}) >= len(RECORDS) - 1
