"""`vl2 data job`: jobs by their names, against an endpoint on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.curate.filters.examples import record, scene
from tests.curate.jobs.fake_endpoint import FakeEndpoint, Reply
from vl2.cli.main import run
from vl2.curate.jobs.job_kinds import JOBS, job_settings
from vl2.data.store import open_random, write_records


@pytest.fixture
def photos(tmp_path: Path) -> str:
    path = tmp_path / "photos.jsonl"
    write_records([record("good", scene(0), answer="A fine answer."), record("bad", answer="a a a a")], str(path))
    with path.open("a") as file:
        file.write("{damaged\n")
    return str(path)


def test_scores_keep_and_drop_and_a_second_run_asks_nothing(photos: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("httpx")
    out = tmp_path / "good"

    def answer(body: dict[str, object], number: int) -> Reply:
        return Reply(text="3" if "a a a a" in json.dumps(body) else "8")

    with FakeEndpoint(answer) as endpoint:
        command = ["data", "job", "score", photos, "--endpoint", endpoint.url, "--model", "judge", "--out", str(out),
                   "--set", "threshold=6"]  # fmt: skip
        assert run([*command, "--json"]) == 0
        said = capsys.readouterr()
        report = json.loads(said.out)
        assert (report["seen"], report["kept"], report["asked"], report["unread"]) == (2, 1, 2, 1)
        assert "photos.jsonl:3" in said.err
        assert endpoint.bodies[0]["model"] == "judge"
        assert run(command) == 0
        said = capsys.readouterr()
        assert "1 kept of 2" in said.err
        assert "1 dropped: its writing scores #, below #" in said.err
        assert endpoint.requests == 2
    assert [each.id for each in open_random(str(out / "kept.jsonl"))] == ["good"]


def test_a_job_does_not_read_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_records([record("a")], "out/kept.jsonl")
    before = (tmp_path / "out" / "kept.jsonl").read_bytes()
    for location in ("out/kept.jsonl", "out", str(tmp_path / "*" / "*.jsonl")):
        command = ["data", "job", "score", location, "--endpoint", "http://h/v1", "--model", "m", "--out", "./out"]
        assert run([*command, "--set", "threshold=6"]) == 1
        said = capsys.readouterr().err
        assert said == "vl2: out/kept.jsonl is what the job writes, and it cannot be read from: choose another --out\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept.jsonl"]
    assert (tmp_path / "out" / "kept.jsonl").read_bytes() == before


def test_every_job_is_listed_with_its_settings(capsys) -> None:
    assert run(["data", "job"]) == 0
    assert capsys.readouterr().out.split() != []
    assert list(JOBS) == ["recaption", "regenerate", "score", "translate", "draft-qa"]
    assert job_settings("recaption") == ["max_tokens", "language"]
    assert job_settings("draft-qa") == ["turns", "min_characters", "max_tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recaptoin"], "no job is called 'recaptoin': did you mean recaption?"),
        (["score"], "the job score needs the setting threshold"),
        (["score", "--set", "threshold=high"], "threshold of the job score must be a whole number, got 'high'"),
        (["score", "--set", "threshold=11"], "threshold must be in 1..10, got 11"),
        (["recaption", "--set", "langauge=zh"], "has no setting langauge: did you mean language?"),
        (["recaption"], "say where the records are"),
        (["recaption", "in.jsonl"], "the job recaption needs --out"),
        (["recaption", "in.jsonl", "--out", "x"], "the job recaption needs --endpoint"),
        (["recaption", "in.jsonl", "--out", "x", "--endpoint", "http://h/v1"], "the job recaption needs --model"),
        (["recaption", "in.jsonl", "--out", "x", "--endpoint", "h", "--model", "m"], "base_url must be like http://"),
        (
            ["translate", "in.jsonl", "--out", "x", "--endpoint", "http://h/v1", "--model", "m"],
            "no file or folder",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", "job", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
