from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vl2.errors import UserError
from vl2.process.fetch import fetch
from vl2.process.image import ImageOptions, open_image

from .golden import REFERENCE

PHOTO = (REFERENCE / "images" / "small50x37.png").read_bytes()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/hop/"):
            left = int(self.path.rsplit("/", 1)[1])
            self.send_response(302)
            self.send_header("Location", f"{left - 1}" if left > 1 else "/photo")
            self.end_headers()
        elif self.path == "/away":
            self.send_response(301)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/lost":
            self.send_response(200)
            self.send_header("Content-Length", str(len(PHOTO) + 10))
            self.end_headers()
            self.wfile.write(PHOTO)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 1000)
            except OSError:
                return
        elif self.path == "/slow":
            try:
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(PHOTO)))
            self.end_headers()
            self.wfile.write(PHOTO)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_a_body_is_fetched_where_private_addresses_are_allowed(server):
    assert fetch(f"{server}/photo?a=b c&ü=%20", max_bytes=10**6, allow_private=True) == PHOTO


def test_a_picture_is_opened_from_a_url(server):
    assert open_image(f"{server}/photo.png", ImageOptions(allow_private_urls=True)).size == (50, 37)


def test_the_own_network_is_out_of_reach(server):
    for url in (server, server.replace("127.0.0.1", "localhost"), server.replace("127.0.0.1", "[::ffff:127.0.0.1]")):
        with pytest.raises(UserError, match="not on the public internet"):
            fetch(url, max_bytes=10**6)


def test_a_name_that_changes_its_address_gains_nothing(server, monkeypatch):
    port = int(server.rsplit(":", 1)[1])
    asked = []

    def resolve(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UserError, match=r"address 127\.0\.0\.1 is not on the public internet"):
        fetch(f"http://harmless.example:{port}/photo", max_bytes=10**6)
    assert asked == ["harmless.example"]  # resolved once: what was checked is what is connected to


def test_redirects_are_followed_three_times_and_no_more(server):
    assert fetch(f"{server}/hop/3", max_bytes=10**6, allow_private=True) == PHOTO
    with pytest.raises(UserError, match="more than 3 redirects"):
        fetch(f"{server}/hop/4", max_bytes=10**6, allow_private=True)


def test_a_redirect_to_another_scheme_is_refused(server):
    with pytest.raises(UserError, match="only http and https are allowed, not file"):
        fetch(f"{server}/away", max_bytes=10**6, allow_private=True)


@pytest.mark.parametrize("path", ["/photo", "/endless"])
def test_bytes_are_limited_while_they_arrive(server, path):
    with pytest.raises(UserError, match="limit of 100"):
        fetch(f"{server}{path}", max_bytes=100, allow_private=True)


def test_an_error_status_is_named(server):
    with pytest.raises(UserError, match="answers 404"):
        fetch(f"{server}/missing", max_bytes=100, allow_private=True)


def test_a_body_cut_off_is_an_error(server):
    with pytest.raises(UserError):
        fetch(f"{server}/lost", max_bytes=10**6, allow_private=True)


def test_a_slow_answer_is_cut_off_at_the_deadline(server):
    with pytest.raises(UserError, match=r"within 0\.3 s"):
        fetch(f"{server}/slow", max_bytes=10**6, timeout_s=0.3, allow_private=True)


def test_slow_headers_are_cut_off_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
                    try:
                        connection.sendall(bytes([byte]))
                    except OSError:
                        return
                    if stop.wait(0.02):
                        return

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(UserError, match=r"within 0\.3 s"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", max_bytes=100, timeout_s=0.3, allow_private=True)
        stop.set()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a",
        "http://",
        "http://user:secret@example.com/",
        "http://example.com:99999/",
        "http://[::1/",
        "http://a b/",
        "http://" + "a" * 300 + "/",
        "http://" + "é" * 100_000 + "/",
        "http://example.com/" + "a" * 20_000_000,
        "http://x.invalid\r\nHost: y/",
    ],
)
def test_a_malformed_url_is_one_line_of_error(url, monkeypatch):
    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UserError) as caught:
        fetch(url, max_bytes=100)
    assert "\n" not in str(caught.value)
