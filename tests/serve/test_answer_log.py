"""The server's log of answers: each answer with its conversation, no secret, and no answer that waits for it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from vl2.answer_log.reader import LogReader
from vl2.infer.vlm import VLM
from vl2.serve.answer_log import ServerLog
from vl2.serve.settings import ServerSettings

from .live_server import LiveServer, engine_backend, serving, wait_for
from .pictures import EXAMPLES, example, user

KEY = {"Authorization": "Bearer very-secret-key"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def logging_server(nano: VLM, file: Path) -> Iterator[LiveServer]:
    settings = ServerSettings(name="nano", api_key="very-secret-key", allowed_folders=(EXAMPLES,))
    with serving(engine_backend(nano), settings, answer_log=ServerLog(file, keeps_bytes=True)) as live:
        yield live


def post(server: LiveServer, path: str, body: dict[str, Any]) -> Any:
    answer = server.post(path, {"model": "nano", **body}, headers=KEY)
    assert answer.status_code == 200, answer.text
    return answer


def logged(file: Path, count: int) -> list[Any]:
    reader = LogReader(file)
    wait_for(lambda: reader.num_answers >= count)
    found = list(reader.oldest_first())
    assert len(found) == count
    return found


def test_answers_of_every_api_are_kept(logging_server: LiveServer, file: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("What does the image say?", example("word.png"))]
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    chat = post(logging_server, "/v1/chat/completions", {"messages": messages, "max_tokens": 8, "n": 2, "seed": 5})
    post(logging_server, "/v1/chat/completions", {"messages": messages, "max_tokens": 8, "stream": True})
    post(logging_server, "/v1/responses", {"input": "Hello", "max_output_tokens": 4})
    post(logging_server, "/v1/completions", {"prompt": ["The sky", "A dog"], "max_tokens": 2})
    post(logging_server, "/v1/chat/completions",
         {"messages": [user("Look")], "tools": [tool], "tool_choice": "required", "max_tokens": 60,
          "parallel_tool_calls": False})  # fmt: skip
    found = logged(file, 7)
    assert [one.source for one in found] == [
        *["/v1/chat/completions"] * 3, "/v1/responses", *["/v1/completions"] * 2, "/v1/chat/completions",
    ]  # fmt: skip
    answers = [choice["message"]["content"] for choice in chat.json()["choices"]]
    assert [one.answer for one in found[:3]] == [*answers, answers[0]]
    assert found[0].question == "What does the image say?"
    assert found[0].messages[0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert found[0].options == {"max_new_tokens": 8, "seed": 5}
    assert found[0].prompt_tokens == chat.json()["usage"]["prompt_tokens"]
    content = base64.b64decode(example("word.png").partition(",")[2])
    assert found[0].pictures == [{"source": "data", "sha256": sha256(content).hexdigest()}]
    assert LogReader(file).picture(sha256(content).hexdigest()) == content
    assert [one.question for one in found[4:6]] == ["The sky", "A dog"]
    call = found[6].answer.removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert json.loads(call) == {"name": "look", "arguments": {}}


def test_no_key_is_in_the_file(logging_server: LiveServer, file: Path, tmp_path: Path) -> None:
    body = {"messages": [user("Hello")], "max_tokens": 2, "user": "ann@example.org", "metadata": {"k": "value-of-ann"}}
    post(logging_server, "/v1/chat/completions", body)
    refused = logging_server.post("/v1/chat/completions", {"model": "nano", **body})
    assert refused.status_code == 401
    logged(file, 1)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (b"very-secret-key", b"Bearer", b"ann@example.org", b"value-of-ann", b"127.0.0.1"):
        assert secret not in written


def test_an_answer_comes_although_it_cannot_be_logged(logging_server: LiveServer) -> None:
    log = logging_server.service.answer_log
    assert log is not None
    warnings: list[str] = []
    log._log._warn = warnings.append
    log._log._database.execute("PRAGMA max_page_count = 1")  # SQLite's own way to simulate a full disk
    body = {"messages": [user("Hello " * 900)], "max_tokens": 2}
    for _ in range(2):
        made = post(logging_server, "/v1/chat/completions", body)
        assert json.loads(made.text)["choices"][0]["finish_reason"]
    wait_for(lambda: warnings != [])
    assert warnings == ["the answer is not in the log: database or disk is full"]
