"""Hub ids, against a hub of our own on this machine: what is downloaded, kept, resumed and refused.

Each download runs in a process of its own, because the hub's client reads its settings when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ..reference import CHECKPOINTS, IMAGES

CHECKPOINT = CHECKPOINTS / "small"
WEIGHTS = "model.safetensors"
COMMIT, OLD_COMMIT = "a" * 40, "b" * 40
REVISIONS = {"main": COMMIT, COMMIT: COMMIT, "v1": OLD_COMMIT, OLD_COMMIT: OLD_COMMIT}
WANTED = {file.name: file.read_bytes() for file in CHECKPOINT.iterdir()}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"raise SystemExit",
    "tokenizer.py": b"raise SystemExit",
    "README.md": b"# toy",
    "onnx/config.json": b"{}",
    "original/model.safetensors": b"another copy",
}
PATIENCE_S = 60.0


@dataclass
class Hub:
    """What the server holds and does, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=lambda: {**WANTED, **UNWANTED})
    gated: bool = False
    cut_next: bool = False  # close the connection halfway through the weights, once
    stall: bool = False  # send half of the weights, and then nothing
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    fetched: list[tuple[str, str | None]] = field(default_factory=list)  # file, and its Range
    commits: set[str] = field(default_factory=set)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if not re.match(r"(/api/models)?/org/toy(/|$)", path):
            self._fail(404, "RepoNotFound")
        elif self.hub.gated:
            self._fail(403, "GatedRepo")
        elif path == "/api/models/org/toy":
            self._send_json({"id": "org/toy", "sha": COMMIT, "siblings": self._siblings()})
        elif match := re.fullmatch(r"/api/models/org/toy/revision/(.+)", path):
            if match[1] not in REVISIONS:
                self._fail(404, "RevisionNotFound")
            else:
                self._send_json({"id": "org/toy", "sha": REVISIONS[match[1]], "siblings": self._siblings()})
        elif re.fullmatch(r"/api/models/org/toy/tree/\w+", path):
            self._send_json([self._entry(name) for name in self.hub.files])
        elif (match := re.fullmatch(r"/org/toy/resolve/(\w+)/(.+)", path)) and match[2] in self.hub.files:
            self.hub.commits.add(match[1])
            self._send_file(match[2], REVISIONS[match[1]])
        else:
            self._fail(404, "EntryNotFound")

    def _siblings(self) -> list[dict[str, str]]:
        return [{"rfilename": name} for name in self.hub.files]

    def _entry(self, name: str) -> dict[str, object]:
        body = self.hub.files[name]
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(body), "oid": etag_of(body)}
        if name.endswith((".safetensors", ".bin")):
            sha256 = hashlib.sha256(body).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(body), "pointerSize": 1}
        return entry

    def _send_file(self, name: str, commit: str) -> None:
        body, wanted_range = self.hub.files[name], self.headers.get("Range")
        is_lfs = name.endswith((".safetensors", ".bin"))
        start = int(wanted_range.removeprefix("bytes=").partition("-")[0]) if wanted_range else 0
        self.send_response(206 if wanted_range else 200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest() if is_lfs else etag_of(body)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) - start))
        if wanted_range:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.fetched.append((name, wanted_range))
        if name == WEIGHTS and (self.hub.cut_next or self.hub.stall):
            self.wfile.write(body[start : len(body) // 2])
            self.wfile.flush()
            self.hub.cut_next = False
            self.close_connection = True
            if self.hub.stall:
                self.hub.stalled.set()
                self.hub.released.wait(PATIENCE_S)
        else:
            self.wfile.write(body[start:])

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def etag_of(body: bytes) -> str:
    """Return the id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    hub.released.set()
    server.shutdown()
    server.server_close()


PROGRAM = """
import json, sys
from vl2.errors import UserError
from vl2.checkpoint import locate_checkpoint
for arguments in json.loads(sys.argv[1]):
    try:
        print("folder:", locate_checkpoint(arguments.pop("name", "org/toy"), **arguments))
    except UserError as error:
        print("UserError:", error)
"""


def environment(hub_url: str, tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    return {
        **kept,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }


def locate(hub_url: str, tmp_path: Path, *calls: dict[str, object]) -> list[str]:
    """Return what each call of locate_checkpoint gives, a line each, all in one new process."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(calls)]
    env = environment(hub_url, tmp_path)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls), done.stderr
    return lines


def files_in(line: str) -> dict[str, bytes]:
    assert line.startswith("folder: "), line
    folder = Path(line.removeprefix("folder: "))
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_only_configuration_and_safetensors_are_downloaded_and_only_once(hub, tmp_path):
    first, again, offline = locate(hub.url, tmp_path, {}, {}, {"offline": True})
    assert files_in(first) == WANTED
    assert again == offline == first
    assert sorted(name for name, _ in hub.fetched) == sorted(WANTED)


def test_a_branch_a_commit_and_a_missing_revision(hub, tmp_path):
    branch, commit, missing = locate(
        hub.url, tmp_path, {"revision": "v1"}, {"revision": OLD_COMMIT}, {"revision": "v9"}
    )
    assert files_in(branch) == WANTED
    assert Path(branch).name == OLD_COMMIT
    assert commit == branch
    assert missing == "UserError: org/toy has no revision v9"
    assert hub.commits == {OLD_COMMIT}


def test_a_dropped_connection_is_resumed_in_the_middle_of_a_file(hub, tmp_path):
    # The client writes, and so resumes, in steps of 10 MB.
    hub.files[WEIGHTS] += bytes(range(256)) * 100_000
    hub.cut_next = True
    (line,) = locate(hub.url, tmp_path, {})
    assert files_in(line)[WEIGHTS] == hub.files[WEIGHTS]
    first, second = (wanted for name, wanted in hub.fetched if name == WEIGHTS)
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(hub.files[WEIGHTS]) // 2


def test_a_download_that_was_killed_keeps_its_finished_files_and_completes_later(hub, tmp_path):
    # huggingface_hub 2.4 begins the file that was under way anew; earlier versions asked for its rest.
    hub.stall = True
    command = [sys.executable, "-c", PROGRAM, "[{}]"]
    with subprocess.Popen(command, env=environment(hub.url, tmp_path), stderr=subprocess.DEVNULL) as process:
        assert hub.stalled.wait(PATIENCE_S)
        snapshot = tmp_path / "cache" / "models--org--toy" / "snapshots" / COMMIT
        deadline = time.monotonic() + PATIENCE_S
        while len(list(snapshot.glob("*.json"))) < len(WANTED) - 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    hub.stall = False
    hub.released.set()
    before = len(hub.fetched)
    offline, line = locate(hub.url, tmp_path, {"offline": True}, {})
    assert offline.startswith("UserError: org/toy is not complete in the local cache")
    assert files_in(line) == WANTED
    assert {name for name, _ in hub.fetched[before:]} == {WEIGHTS}


def test_what_is_not_cached_is_refused_offline(hub, tmp_path):
    lines = locate(hub.url, tmp_path, {"offline": True}, {"offline": True, "revision": "v1"})
    assert lines == [
        "UserError: org/toy is not complete in the local cache, and there is no such folder",
        "UserError: org/toy at revision v1 is not complete in the local cache, and there is no such folder",
    ]
    assert hub.fetched == []


def test_a_hub_that_is_down_is_told_and_the_cache_still_serves(hub, tmp_path):
    closed = "http://127.0.0.1:9"  # the discard port: nothing listens
    (down,) = locate(closed, tmp_path, {})
    assert down.startswith("UserError: org/toy is not in the local cache and the hub cannot be reached")
    (line,) = locate(hub.url, tmp_path, {})
    assert locate(closed, tmp_path, {}) == [line]


def test_gated_missing_and_malformed_names_are_told_apart(hub, tmp_path):
    hub.gated = True
    gated, missing, malformed = locate(hub.url, tmp_path, {}, {"name": "org/nothing"}, {"name": "org/a--b"})
    assert gated == "UserError: org/toy is gated: accept its licence on the hub and log in with `hf auth login`"
    assert missing.startswith("UserError: no folder and no model on the hub is called org/nothing")
    assert malformed.startswith("UserError: no folder org/a--b, and it is no hub id: ")


def test_inspecting_downloads_no_weights_and_what_follows_gets_them(hub, tmp_path):
    program = (
        "from vl2.cli.main import run; run(['inspect', 'org/toy']); run(['inspect', 'photo.png', '-m', 'org/toy'])"
    )
    shutil.copy(IMAGES / "photo640x480.png", tmp_path / "photo.png")
    env = environment(hub.url, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "vl2 ask ... --model org/toy" in done.stdout, done.stderr
    assert "canvas" in done.stdout
    settings = {name for name in WANTED if name.endswith(".json")}
    assert {name for name, _ in hub.fetched} == settings
    offline, line = locate(hub.url, tmp_path, {"offline": True}, {})
    assert offline.startswith("UserError: org/toy is not complete in the local cache")
    assert files_in(line) == WANTED


def test_the_command_line_answers_from_the_hub_and_is_quiet_on_request(hub, tmp_path):
    program = "from vl2.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "ask",
        "hello",
        "-m",
        "org/toy",
        "--max-new-tokens",
        "3",
        "--device",
        "cpu",
    ]
    env = environment(hub.url, tmp_path)
    quiet = subprocess.run([*command, "--quiet"], env=env, capture_output=True, timeout=PATIENCE_S)
    local = subprocess.run(
        [str(CHECKPOINT) if word == "org/toy" else word for word in command],
        env=env,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    assert quiet.stdout == local.stdout != b""
