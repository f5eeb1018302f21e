"""Pictures by a list of URLs, from a local server: what is kept, what is refused, and going on after a stop."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from vl2.cli.main import run
from vl2.data.store import open_random
from vl2.datasets.fetch_urls import ListedPicture, UrlOptions, fetch_pictures, read_picture_list
from vl2.errors import UserError
from vl2.process import fetch as fetching


def picture(color: tuple[int, int, int], kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


BODIES = {
    "/red.png": picture((255, 0, 0)),
    "/green.jpg": picture((0, 255, 0), "JPEG"),
    "/blue.webp": picture((0, 0, 255), "WEBP"),
    "/page.html": b"<html>not a picture</html>",
    "/gif.gif": picture((1, 2, 3), "GIF"),
    "/cut.png": picture((9, 9, 9), size=(300, 300))[:-40],
    "/large.png": picture((7, 7, 7)) + bytes(2_000_000),
}
REDIRECTS = {"/moved": "/red.png", "/inside": "http://169.254.169.254/latest/meta-data"}


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[Counter[str]] = Counter()
    most_at_once = at_once = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        with Handler.lock:
            Handler.asked[self.path] += 1
            Handler.at_once += 1
            Handler.most_at_once = max(Handler.most_at_once, Handler.at_once)
        time.sleep(0.01)
        with Handler.lock:  # before the answer, after which the client may ask for the next picture
            Handler.at_once -= 1
        body = BODIES.get(self.path)
        if self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path])
            self.end_headers()
        elif body is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked, Handler.most_at_once, Handler.at_once = Counter(), 0, 0
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def listed(server: str, *paths: str, **more: str) -> list[dict[str, str]]:
    def sha(path: str) -> str:
        return hashlib.sha256(BODIES.get(REDIRECTS.get(path, path), path.encode())).hexdigest()

    return [{"url": server + path, "sha256": sha(path), "licence": "CC-BY-4.0", **more} for path in paths]


def write_toml(file: Path, rows: list[dict[str, str]]) -> str:
    tables = (
        "[[picture]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in row.items()) for row in rows
    )
    file.write_text("\n".join(tables), encoding="utf-8")
    return str(file)


def test_pictures_become_records_that_keep_licence_and_author(server: str, tmp_path: Path, capsys) -> None:
    rows = [
        *listed(server, "/red.png", author="Ann", caption="A red field."),
        *listed(server, "/green.jpg", "/blue.webp"),
    ]
    to = tmp_path / "photos"
    command = [
        "data",
        "fetch",
        "--urls",
        write_toml(tmp_path / "list.toml", rows),
        "--to",
        str(to),
        "--allow-private-urls",
    ]
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(to), "pictures": 3, "already_there": 0, "failed": 0
    }  # fmt: skip
    records = {record.source: record for record in open_random(str(to / "records.jsonl"))}
    red = records[f"{server}/red.png by Ann"]
    assert (red.licence, red.category, red.messages[1].parts[0].text) == ("CC-BY-4.0", "caption", "A red field.")
    assert {record.images[0].width for record in records.values()} == {40}
    with Image.open(io.BytesIO(red.images[0].data or b"")) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    # Again: nothing is downloaded a second time, but a file that was damaged is.
    Handler.asked.clear()
    next(to.rglob("*.png")).write_bytes(b"damaged")
    assert run(command) == 0
    assert Handler.asked == {"/red.png": 1}
    assert "3 pictures (2 were there already)" in capsys.readouterr().err


def test_bad_pictures_are_refused_each_with_its_reason_and_the_others_kept(server: str, tmp_path: Path, capsys) -> None:
    wrong = {"url": f"{server}/green.jpg", "sha256": "0" * 64, "licence": "CC0-1.0"}
    bad = ("/page.html", "/gif.gif", "/cut.png", "/large.png", "/missing.png")
    rows = [*listed(server, "/moved", *bad), wrong]
    to = tmp_path / "photos"
    command = ["data", "fetch", "--urls", write_toml(tmp_path / "list.toml", rows), "--to", str(to), "--max-mb", "1"]
    assert run([*command, "--allow-private-urls"]) == 1
    assert "6 of 7 pictures failed" in capsys.readouterr().err
    lines = (to / "failed.jsonl").read_text(encoding="utf-8").splitlines()
    why = {each["url"].removeprefix(server): each["why"] for each in map(json.loads, lines)}
    for path, reason in {
        "/page.html": "no JPEG, PNG or WebP", "/gif.gif": "no JPEG, PNG or WebP", "/cut.png": "damaged",
        "/large.png": "more than the limit of 1000000", "/missing.png": "404", "/green.jpg": "not the listed one",
    }.items():  # fmt: skip
        assert reason in why.pop(path)
    assert not why
    assert [record.source for record in open_random(str(to / "records.jsonl"))] == [f"{server}/moved"]
    assert [path.suffix for path in to.rglob("*") if path.is_file() and path.parent != to] == [".png"]


def test_private_addresses_are_refused_also_behind_a_redirect(server: str, tmp_path: Path, monkeypatch) -> None:
    inside = ListedPicture(url=f"{server}/inside", sha256="1" * 64, licence="CC0-1.0")
    (outcome,) = fetch_pictures([inside], tmp_path, UrlOptions())
    assert "127.0.0.1 is not on the public internet" in outcome.why
    assert not Handler.asked
    public = fetching.is_public
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1" or public(address))
    (outcome,) = fetch_pictures([inside], tmp_path, UrlOptions())
    assert "169.254.169.254 is not on the public internet" in outcome.why
    assert Handler.asked == {"/inside": 1}


def test_no_more_pictures_are_under_way_than_allowed(server: str, tmp_path: Path) -> None:
    rows = [
        ListedPicture(url=f"{server}/{n}", sha256=hashlib.sha256(b"%d" % n).hexdigest(), licence="CC0-1.0")
        for n in range(30)
    ]
    outcomes = list(fetch_pictures(rows, tmp_path, UrlOptions(concurrency=3, allow_private=True)))
    assert {outcome.picture for outcome in outcomes} == set(rows)
    assert 1 <= Handler.most_at_once <= 3


def test_a_list_is_toml_or_csv_and_its_mistakes_are_named(tmp_path: Path) -> None:
    good = listed("https://example.org", "/red.png", caption="Red, of course")
    table = tmp_path / "list.csv"
    table.write_text(
        f'url,sha256,licence,caption,author\n{good[0]["url"]},{good[0]["sha256"]},CC-BY-4.0,"Red, of course",\n',
        encoding="utf-8",
    )
    assert read_picture_list(str(table)) == read_picture_list(write_toml(tmp_path / "list.toml", good))
    for changed, said in (
        ({"sha256": "12"}, "picture 1: sha256 must be 64 digits"),
        ({"url": "file:///etc/passwd"}, "url must begin with http"),
        ({"licence": ""}, "licence must not be empty"),
        ({"language": "fr"}, "language must be en or zh"),
        ({"autor": "x"}, "has no setting autor: did you mean author"),
    ):
        with pytest.raises(UserError, match=said):
            read_picture_list(write_toml(tmp_path / "bad.toml", [{**good[0], **changed}]))
    with pytest.raises(UserError, match=r"picture 2: sha256 .* is listed twice"):
        read_picture_list(write_toml(tmp_path / "bad.toml", good * 2))
    table.write_text("url,sha256,licence\nhttp://a,b\n", encoding="utf-8")
    with pytest.raises(UserError, match="picture 1 must have 3 values"):
        read_picture_list(str(table))
    with pytest.raises(UserError, match="concurrency must be from 1 to 64"):
        UrlOptions(concurrency=0)
