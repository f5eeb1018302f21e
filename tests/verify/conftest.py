"""A correct checkpoint of random weights, copies of it to be damaged, and a server of pictures."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from vl2.checkpoint import random_checkpoint

from ..cli.conftest import Ran
from ..cli.conftest import vl2 as vl2

SHARD_BYTES = 8_000_000


@pytest.fixture(scope="session")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the built-in size with random weights in several files. It must not be changed."""
    folder = tmp_path_factory.mktemp("correct") / "random"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_checkpoint, "SHARD_BYTES", SHARD_BYTES)
        random_checkpoint.write_random_checkpoint("nano", folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def damaged(correct: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(correct, tmp_path / "damaged"))


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def change_tensors(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def first_file(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


@dataclass
class Report:
    """What `vl2 verify --json` said."""

    ran: Ran
    page: dict[str, Any]

    def find(self, name: str) -> dict[str, Any]:
        (check,) = [check for check in self.page["checks"] if check["name"] == name]
        return dict(check)

    def verdict(self, name: str) -> str:
        return str(self.find(name)["verdict"])

    @property
    def failed(self) -> list[str]:
        return [check["name"] for check in self.page["checks"] if check["verdict"] == "fail"]


@pytest.fixture
def verify(vl2: Callable[..., Ran]) -> Callable[..., Report]:
    """Run the command with --json, on the CPU."""

    def call(*arguments: str | Path) -> Report:
        ran = vl2("verify", *arguments, "--json", "--device", "cpu")
        assert ran.out, ran.err
        return Report(ran=ran, page=json.loads(ran.out))

    return call


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob " + str(len(data)).encode() + b"\0" + data).hexdigest()


@dataclass
class PictureServer:
    """What it holds, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def picture_server() -> Iterator[PictureServer]:
    held = PictureServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            held.asked.append(name)
            body = held.files.get(name, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    held.url = f"http://127.0.0.1:{server.server_port}/images"
    yield held
    server.shutdown()
    server.server_close()
