"""A judge is any OpenAI-compatible endpoint: here a small one of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.eval.fixtures import cell, parquet
from vl2.cli.main import run
from vl2.errors import UserError
from vl2.eval.judge import endpoint_judge
from vl2.eval.results import read_results, read_run


class Handler(BaseHTTPRequestHandler):
    """Says 3 to everything; refuses a prompt with the word forbidden, and every prompt to the model of that name."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = asked["messages"][-1]["content"]
        reply = {"choices": [{"message": {"content": "3"}, "finish_reason": "stop"}]}
        body = json.dumps(reply).encode()
        self.send_response(400 if "forbidden" in (asked["model"], *prompt.split()) else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_many_prompts_are_answered_in_order(endpoint: str) -> None:
    judge = endpoint_judge(endpoint, "small")
    assert judge.name == f"small at {endpoint}"
    assert judge.ask(["one", "two", "three"]) == ["3", "3", "3"]


def test_an_endpoint_that_refuses_is_told_in_one_line(endpoint: str) -> None:
    with pytest.raises(UserError, match=r"the judge at http.* gives no answer: status 400"):
        endpoint_judge(endpoint, "forbidden").ask(["one"])


def test_a_prompt_that_is_refused_alone_gets_no_reply_and_the_others_do(endpoint: str) -> None:
    assert endpoint_judge(endpoint, "small").ask(["one", "forbidden", "three"]) == ["3", None, "3"]
    assert endpoint_judge(endpoint, "small").ask(["forbidden"]) == [None]


def test_a_finished_run_is_judged_later_without_asking_the_model_again(
    tmp_path: Path, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"pid": "1", "question": "How many?", "query": "How many?", "answer": "3", "question_type": "free_form"}
    row |= {"answer_type": "integer", "decoded_image": cell()}
    parquet(tmp_path / "testmini-00000-of-00001.parquet", [row, {**row, "pid": "2"}])
    command = ["eval", "run", "mathvista", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]
    command += ["--max-new-tokens", "3"]
    assert run(command) == 0
    assert "2 answers need a judge and count as wrong" in capsys.readouterr().out
    answers = [result.answer for result in read_results(tmp_path / "out" / "mathvista")]
    assert run([*command, "--judge-url", endpoint, "--judge-model", "small"]) == 0
    assert "score 100.0" in capsys.readouterr().out
    judged = read_results(tmp_path / "out" / "mathvista")
    assert [result.answer for result in judged] == answers
    assert {(result.score, result.read) for result in judged} == {(1.0, "3 (judge)")}
    assert read_run(tmp_path / "out" / "mathvista").judge == f"small at {endpoint}"
    assert f"judge: small at {endpoint}" in (tmp_path / "out" / "mathvista" / "report.md").read_text(encoding="utf-8")
