"""A web server that misbehaves, and a resolver that knows it as a public one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vl2.process import fetch

PUBLIC = "93.184.215.14"


class StrangeHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            self._answer()

    def _answer(self) -> None:
        places = {"/to-private": "http://192.168.0.1/a.png", "/to-file": "file:///etc/passwd", "/round": "/round"}
        if self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/large":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        if self.path == "/endless":
            while True:
                self.wfile.write(b"\x89PNG" * 10_000)
        if self.path == "/slow":
            for _ in range(1000):
                self.wfile.write(b"x")
                time.sleep(0.05)
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def strange_web(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `redirects.test` be a public host, and some names be what an attacker's name server would say."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), StrangeHandler)
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    resolve, connect = socket.getaddrinfo, socket.socket.connect
    names = {"internal.test": ["10.0.0.7"], "mixed.test": [PUBLIC, "127.0.0.1"], "redirects.test": [PUBLIC]}
    is_over = threading.Event()

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **named: Any) -> list[Any]:
        if host == "slow-name.test":
            is_over.wait(20)
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        if isinstance(host, str) and host.lower().rstrip(".") == "localhost":
            host = "127.0.0.1"
        if host in names:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]
        if isinstance(host, str) and (host.endswith((".invalid", ".com", ".test"))):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")  # no test asks the real name servers
        return resolve(host, port, *arguments, **named)

    class Rerouted(socket.socket):
        """The public address of a test is this machine."""

        def connect(self, address: Any) -> None:
            connect(self, web.server_address if address[0] == PUBLIC else address)

    monkeypatch.setattr(fetch.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(fetch.socket, "socket", Rerouted)
    try:
        yield
    finally:
        is_over.set()
        web.shutdown()
        web.server_close()
