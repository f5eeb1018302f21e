"""Record what programs send: stand between them and a server, and keep each request as a fixture.

    vl2 serve --port 8000 &
    python tests/serve/record_clients.py --server http://127.0.0.1:8000 --python VENV/bin/python --node NODE_FOLDER

VENV has the Python packages that `tests/serve/clients/*.py` import, NODE_FOLDER the npm packages of `*.mjs` in its
`node_modules`; what is not installed is passed over. Each program asks this recorder, which hands the request on to the
server and keeps it; so the program is seen to work, or not, at the same time. A program that has no script, a web
application for example, is recorded with `--listen NAME VERSION`: point it at http://127.0.0.1:9100/v1, use it, and end
the recorder with Ctrl-C.

Keys, host names, sizes, and what tells of the machine are left out of the headers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
PORT = 9100
KEPT_HEADERS = ("accept", "content-type", "user-agent", "openai-organization", "openai-project", "openai-beta",
                "x-stainless-lang", "x-stainless-package-version", "x-title", "http-referer")  # fmt: skip


class Recorder(ThreadingHTTPServer):
    """Hands requests on to a server, and keeps those that have a body."""

    def __init__(self, server: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.upstream = server
        self.scenario = ""
        self.kept: list[dict[str, Any]] = []
        self.statuses: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def log_message(self, format: str, *arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/scenario":  # said by a script, of what it sends next
            self.server.scenario = body.decode()
            self._send(200, {"content-type": "text/plain"}, b"")
            return
        self._answer(body)

    def _chunks(self) -> Iterator[bytes]:
        while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, body: bytes) -> None:
        passed = {name: value for name, value in self.headers.items()
                  if name.lower() not in ("host", "content-length", "transfer-encoding", "connection",
                                          "accept-encoding")}  # fmt: skip
        answer = httpx.request(
            self.command, self.server.upstream + self.path, content=body, headers=passed, timeout=300
        )
        if self.command == "POST":
            headers = {name.lower(): value for name, value in self.headers.items() if name.lower() in KEPT_HEADERS}
            self.server.kept.append(
                {"scenario": self.server.scenario, "path": self.path, "headers": headers, "body": json.loads(body)}
            )
            self.server.statuses.append(answer.status_code)
            ignored = answer.headers.get("x-vl2-ignored-fields", "")
            print(f"  {self.server.scenario}: {self.path} {answer.status_code} {ignored}")
            if answer.status_code >= 400:
                print(f"    {answer.text[:300]}")
        sent = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "content-encoding")
        }
        self._send(answer.status_code, sent, answer.content)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def recording(server: str, port: int = PORT) -> Iterator[Recorder]:
    recorder = Recorder(server, port)
    threading.Thread(target=recorder.serve_forever, daemon=True).start()
    try:
        yield recorder
    finally:
        recorder.shutdown()
        recorder.server_close()


def write(name: str, version: str, how: str, requests: list[dict[str, Any]]) -> None:
    RECORDED.mkdir(exist_ok=True)
    fixture = {"program": name, "version": version, "how": how, "requests": requests}
    text = json.dumps(fixture, indent=1, ensure_ascii=False) + "\n"
    (RECORDED / f"{name.replace('/', '-').replace('@', '')}.json").write_text(text, encoding="utf-8")


def run_script(recorder: Recorder, script: Path, command: list[str], environment: dict[str, str]) -> None:
    """Run a script, which prints the name and the version of its program first, and write its fixture."""
    ran = subprocess.run(
        [*command, str(script), f"http://127.0.0.1:{PORT}"],
        capture_output=True, text=True, timeout=600, env={**os.environ, **environment}, cwd=script.parent,
    )  # fmt: skip
    first = ran.stdout.partition("\n")[0].split()
    print(ran.stdout + ran.stderr[-2000:])
    requests = recorder.kept
    recorder.kept, recorder.scenario = [], ""
    if len(first) == 2 and requests:
        write(first[0], first[1], f"tests/serve/clients/{script.name}, through tests/serve/record_clients.py", requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--python", help="an interpreter that has the Python programs")
    parser.add_argument("--node", type=Path, help="a folder with node_modules")
    parser.add_argument("--only", default="", help="scripts whose name contains this")
    parser.add_argument("--listen", nargs=2, metavar=("NAME", "VERSION"))
    flags = parser.parse_args()
    with recording(flags.server) as recorder:
        if flags.listen:
            how = "used in a browser, through tests/serve/record_clients.py --listen"
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(1)
                    write(*flags.listen, how, recorder.kept)
            return
        for script in sorted((HERE / "clients").iterdir()):
            if script.suffix == ".mjs" and flags.node:
                # Node looks for packages beside the script.
                script = shutil.copy(script, flags.node / script.name)
            if flags.only not in script.name or script.name.startswith("_"):
                continue
            if script.suffix == ".py" and flags.python:
                run_script(recorder, script, [flags.python], {"PYTHONPATH": ""})
            if script.suffix == ".mjs" and flags.node:
                run_script(recorder, script, ["node"], {})


if __name__ == "__main__":
    main()
