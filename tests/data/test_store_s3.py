"""The stores on a real S3 API, served on loopback: runs where `moto[server]` and `s3fs` are installed.

No extra asks for them: both pin botocore, and pip takes minutes to find versions that agree.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.data.sample_records import good_records
from vl2.cli.main import run
from vl2.data.record import Record
from vl2.data.store import Located, open_random, read_records, write_records
from vl2.errors import UserError

pytest.importorskip("pyarrow")
s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

FORMATS = ("jsonl", "tar", "parquet")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Serve S3 on loopback, with a bucket; return its file system."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    # The servers of one process share their buckets.
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    try:
        yield files
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("shard_records", [None, 4])
def test_records_come_back_from_s3(ending: str, shard_records: int | None, s3: Any) -> None:
    records = list(good_records(9))
    write_records(records, f"s3://bucket/a/set.{ending}", shard_records=shard_records)
    found = list(read_records(f"s3://bucket/a/set*.{ending}"))
    assert [item.record for item in found if isinstance(item, Located)] == records
    assert [record.id for record in open_random("s3://bucket/a")] == [record.id for record in records]
    assert not [path for path in s3.find("bucket") if path.endswith(".part")]
    with pytest.raises(UserError, match="already exists"):
        write_records(records, f"s3://bucket/a/set.{ending}", shard_records=shard_records)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_failed_write_leaves_nothing_on_s3(ending: str, s3: Any) -> None:
    def breaking() -> Iterator[Record]:
        yield from good_records(5)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_records(breaking(), f"s3://bucket/a/set.{ending}", shard_records=2)
    assert s3.find("bucket") == []


@pytest.mark.parametrize("ending", FORMATS)
def test_a_mistyped_bucket_is_an_error_and_is_not_made(ending: str, s3: Any) -> None:
    with pytest.raises(UserError, match="buckett"):
        write_records(good_records(2), f"s3://buckett/set.{ending}")
    assert s3.ls("") == ["bucket"]


def test_the_commands_take_s3_urls(s3: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "build", "scene", "s3://bucket/scenes.tar", "--count", "4", "--processes", "1", "-q"]) == 0
    assert run(["data", "validate", "s3://bucket/scenes.tar"]) == 0
    assert run(["data", "stats", "s3://bucket/*.tar", "--json"]) == 0


def test_an_endpoint_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, s3: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"cannot reach s3://bucket/set.tar"):
        read_records("s3://bucket/set.tar")
