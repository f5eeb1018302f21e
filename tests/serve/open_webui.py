"""Open WebUI, started on a free port of 127.0.0.1 and asked as its own page asks it.

The form of the requests is that of its page and its server, version 0.12.4.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vl2.serve.server import bind

# It looks for models on the internet otherwise.
OFFLINE = {"OFFLINE_MODE": "True", "RAG_EMBEDDING_ENGINE": "openai", "ENABLE_OLLAMA_API": "False"}
START_S = 600.0  # its first start compiles some hundred packages
ANSWER_S = 120.0


@dataclass(frozen=True, kw_only=True)
class OpenWebUI:
    client: httpx.Client  # signed in as the administrator

    def post(self, path: str, **arguments: Any) -> Any:
        answer = self.client.post(path, **arguments)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, body: Mapping[str, Any]) -> list[str]:
        """Return the pieces of an answer of its API."""
        with self.client.stream("POST", "/api/chat/completions", json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            data = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        chunks = [json.loads(chunk) for chunk in data[:-1]]
        pieces = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
        return [piece for piece in pieces if piece]

    def add_filter(self, name: str, code: str) -> None:
        """Add a function of the kind "filter" and turn it on for all models."""
        meta = {"description": name}
        made = self.post("/api/v1/functions/create", json={"id": name, "name": name, "content": code, "meta": meta})
        assert made["type"] == "filter"
        self.post(f"/api/v1/functions/id/{name}/toggle")
        is_global = self.post(f"/api/v1/functions/id/{name}/toggle/global")["is_global"]
        assert is_global

    def ask_in_a_new_chat(self, model: str, question: str, picture: Path) -> str:
        """Ask about a picture as its page does, and return the answer when all tasks of the chat have ended."""
        with picture.open("rb") as stored:
            uploaded = self.post("/api/v1/files/", files={"file": (picture.name, stored, "image/png")})
        file = {"type": "image", "id": uploaded["id"], "url": uploaded["id"], "name": picture.name}
        asked = {"role": "user", "content": question, "files": [{**file, "content_type": "image/png"}]}
        question_id, answer_id = str(uuid.uuid4()), str(uuid.uuid4())
        chat = self.post(
            "/api/chat/completions",
            json={
                "model": model,
                "messages": [asked],
                "stream": True,
                "session_id": str(uuid.uuid4()),  # without one, it takes the request for one of its API
                "id": answer_id,
                "parent_id": None,
                "user_message": {**asked, "id": question_id, "parentId": None, "models": [model]},
                "background_tasks": {
                    "title_generation": True,
                    "tags_generation": True,
                    "follow_up_generation": True,
                },
            },
        )["chat_id"]
        deadline = time.monotonic() + ANSWER_S
        while self.get(f"/api/tasks/chat/{chat}")["task_ids"]:
            assert time.monotonic() < deadline, "Open WebUI did not answer"
            time.sleep(0.2)
        answer: dict[str, Any] = self.get(f"/api/v1/chats/{chat}")["chat"]["history"]["messages"][answer_id]
        assert answer["done"]
        assert "error" not in answer, answer
        content: str = answer["content"]
        return content


def wait_until_ready(program: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert program.poll() is None, f"Open WebUI ended: {log.read_text(encoding='utf-8')[-2000:]}"
        assert time.monotonic() < deadline, f"Open WebUI did not start: {log.read_text(encoding='utf-8')[-2000:]}"
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)


@contextmanager
def open_webui(program: str, folder: Path, settings: Mapping[str, str]) -> Iterator[OpenWebUI]:
    """Start the program with an empty data folder and variables of its environment, and sign in."""
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "open-webui.log"
    # It has an environment of its own: our packages are not for it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {**OFFLINE, "WEBUI_AUTH": "False", "DATA_DIR": str(folder), **settings}
    with log.open("wb") as output:
        started = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=url, timeout=ANSWER_S) as client:
            wait_until_ready(started, client, log)
            signed_in = client.post("/api/v1/auths/signin", json={"email": "", "password": ""})
            assert signed_in.status_code == 200, signed_in.text
            client.headers["Authorization"] = f"Bearer {signed_in.json()['token']}"
            yield OpenWebUI(client=client)
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
