"""The runner: nothing is asked twice, a killed run goes on, and every record has its outcome."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.curate.filters.examples import encoded, record, scene
from tests.curate.jobs.fake_endpoint import FakeEndpoint, Reply, prompt_of
from tests.curate.jobs.scoring_program import CONCURRENCY, NUM_RECORDS, score_all
from vl2.curate.jobs import ocr
from vl2.curate.jobs.client import Client, Endpoint
from vl2.curate.jobs.job import run_job
from vl2.curate.jobs.job_kinds import Recaption, ScoreWriting
from vl2.curate.jobs.job_outputs import Summary, reason_kind
from vl2.curate.jobs.ocr import Line
from vl2.curate.record_texts import texts_of
from vl2.data.record import Record, StoredImage
from vl2.errors import UserError

pytest.importorskip("httpx")
ROOT = Path(__file__).parents[3]


def number_in(body: dict[str, Any]) -> int:
    match = re.search(r"Text number (\d+)", prompt_of(body))
    assert match is not None
    return int(match[1])


def steady(body: dict[str, Any], number: int) -> Reply:
    """Score by the record's number; some slower, so that answers come out of order."""
    n = number_in(body)
    return Reply(text=str(1 + n % 10), after_s=0.03 if n % 5 == 0 else 0.01)


def moody(body: dict[str, Any], number: int) -> Reply:
    """Fail at first for some, send garbage for others, and never work for record 13."""
    n = number_in(body)
    if n == 13:
        return Reply(status=400, raw=b"no thirteens")
    if n == 17 or (n % 7 == 0 and body["seed"] == 0):
        return Reply(text="garbage")
    if n == 19:
        return Reply(text="7", finish_reason="length")
    if n % 3 == 0 and number == 1:
        return Reply(status=429 if n % 2 else 500)
    return Reply(text=str(1 + n % 10))


def fast_client(endpoint: Endpoint) -> Client:
    import asyncio

    async def no_sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    return Client(endpoint=endpoint, sleep=no_sleep)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_of(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in ("kept.jsonl", "outcomes.jsonl")}


def scored(count: int) -> Iterator[Record]:
    return (record(f"r-{number}", answer=f"Text number {number}.") for number in range(count))


def run_scores(url: str, out: Path, threshold: int = 4, count: int = 30) -> Summary:
    endpoint = Endpoint(base_url=url, model="fake", concurrency=4, tries=3)
    job = ScoreWriting(threshold=threshold)
    return run_job(job, scored(count), endpoint, out=out, progress=False, open_client=fast_client)


def test_every_record_has_an_outcome_in_order_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    with FakeEndpoint(moody) as fake:
        summary = run_scores(fake.url, tmp_path)
        asked = fake.requests
        outcomes = lines_of(tmp_path / "outcomes.jsonl")
        assert [line["id"] for line in outcomes] == [f"r-{number}" for number in range(30)]
        why = {int(line["id"][2:]): line["why"] for line in outcomes if not line["kept"]}
        assert why[13] == "status 400: no thirteens"
        assert why[17].startswith("no readable answer in 2 tries: expected a number from 1 to 10, got 'garbage'")
        assert why[19] == "no readable answer in 2 tries: the answer was truncated"
        assert why[20] == "its writing scores 1, below 4"
        assert outcomes[7]["why"] == "its writing scores 8"  # garbage at first
        kept = [Record.from_dict(line) for line in lines_of(tmp_path / "kept.jsonl")]
        assert [each.id for each in kept] == [line["id"] for line in outcomes if line["kept"]]
        assert (summary.seen, summary.kept, summary.finished) == (30, len(kept), True)
        assert sum(summary.dropped.values()) == 30 - len(kept)
        assert json.loads((tmp_path / "summary.json").read_text())["kept"] == len(kept)

        files = files_of(tmp_path)
        again = run_scores(fake.url, tmp_path)
        assert fake.requests == asked + 1  # the one that was never answered
        assert files_of(tmp_path) == files
        assert (again.asked, again.reused) == (0, summary.asked)
        stricter = run_scores(fake.url, tmp_path, threshold=8)
        assert stricter.kept < again.kept
        assert fake.requests == asked + 2


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    records = [record(f"same-{number}", answer="Text number 5.") for number in range(20)]
    with FakeEndpoint(steady) as fake:
        endpoint = Endpoint(base_url=fake.url, model="fake")
        summary = run_job(ScoreWriting(threshold=1), records, endpoint, out=tmp_path, progress=False)
    assert (fake.requests, summary.kept) == (1, 20)


def test_half_a_character_is_an_outcome_like_any_other(tmp_path: Path) -> None:
    records = [record("cut \ud83d", answer="Text number 5."), record("b", answer="Text number 5.")]
    with FakeEndpoint(steady) as fake:
        endpoint = Endpoint(base_url=fake.url, model="fake")
        summary = run_job(ScoreWriting(threshold=1), records, endpoint, out=tmp_path, progress=False)
    assert (summary.kept, summary.dropped) == (1, {"a text cannot be used": 1})
    first, second = lines_of(tmp_path / "outcomes.jsonl")
    assert (first["id"], first["why"]) == (
        records[0].id,
        "a text cannot be used: id has an unpaired surrogate (U+D83D)",
    )
    assert second["kept"]


def test_another_job_does_not_replace_the_results(tmp_path: Path) -> None:
    with FakeEndpoint(steady) as fake:
        run_scores(fake.url, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        endpoint = Endpoint(base_url=fake.url, model="fake")
        with pytest.raises(UserError, match="holds the results of the job score_writing, not of recaption: choose"):
            run_job(Recaption(), scored(3), endpoint, out=tmp_path, ocr_ledger=tmp_path.with_suffix(".ocr"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def started(url: str, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.curate.jobs.scoring_program", url, str(out)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


class Gate:
    """Answer steadily up to a number of requests, and let the later ones wait until the gate is opened."""

    def __init__(self) -> None:
        self.closes_after = 0
        self.opened = threading.Event()
        self._count = 0

    def __call__(self, body: dict[str, Any], number: int) -> Reply:
        self._count += 1
        if self._count > self.closes_after:
            self.opened.wait(60)
        return steady(body, number)

    def wait_until_closed(self, closes_after: int, process: subprocess.Popen[str]) -> None:
        """Wait until more than so many requests came, the last of which are not answered."""
        deadline = time.monotonic() + 60
        while self._count <= closes_after:
            assert process.poll() is None, "the run ended before it was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_a_killed_run_goes_on_as_if_it_had_never_been_killed(tmp_path: Path) -> None:
    with FakeEndpoint(steady) as fake:
        score_all(fake.url, tmp_path / "whole")
        assert fake.requests == NUM_RECORDS
    gate = Gate()
    with FakeEndpoint(gate) as fake:
        for gate.closes_after in (12, 35):
            process = started(fake.url, tmp_path / "killed")
            gate.wait_until_closed(gate.closes_after, process)
            process.kill()
            process.communicate()
            assert not (tmp_path / "killed" / "kept.jsonl").exists()
        # As if the machine had stopped in the middle of a line.
        with (tmp_path / "killed" / "answers.jsonl").open("ab") as file:
            file.write(b'{"key": "torn')
        gate.opened.set()
        summary = score_all(fake.url, tmp_path / "killed")
    assert summary.finished
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert len(fake.seen) == NUM_RECORDS
    repeated = sum(count - 1 for count in fake.seen.values())
    assert repeated <= 2 * CONCURRENCY  # those that were under way at the two kills
    assert summary.reused > 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    gate = Gate()
    gate.closes_after = 20
    with FakeEndpoint(gate) as fake:
        process = started(fake.url, tmp_path)
        gate.wait_until_closed(20, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)  # the signal must arrive before the answers do
        gate.opened.set()
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "False\n")
        first = json.loads((tmp_path / "summary.json").read_text())
        outcomes = lines_of(tmp_path / "outcomes.jsonl")
        assert 0 < len(outcomes) == first["seen"] == first["asked"] == fake.requests < NUM_RECORDS
        assert score_all(fake.url, tmp_path).finished
    assert set(fake.seen.values()) == {1}
    assert len(lines_of(tmp_path / "outcomes.jsonl")) == NUM_RECORDS


def test_an_endpoint_that_is_down_ends_the_run_and_not_the_records(tmp_path: Path) -> None:
    with FakeEndpoint(lambda body, number: Reply(status=500)) as fake:
        with pytest.raises(UserError, match="failed 20 requests in a row; run again to resume"):
            run_scores(fake.url, tmp_path, count=500)
        assert fake.requests < 100
    with FakeEndpoint(lambda body, number: Reply(status=401)) as fake:
        with pytest.raises(UserError, match="status 401"):
            run_scores(fake.url, tmp_path, count=500)
        assert fake.requests <= 4
    assert not (tmp_path / "kept.jsonl").exists()


def test_the_key_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-987")
    echo = Reply(status=400, raw=b"bad key sk-secret-987")
    with FakeEndpoint(lambda body, number: echo if number_in(body) % 2 else Reply()) as fake:
        run_scores(fake.url, tmp_path, count=10)
    assert fake.authorization == {"Bearer sk-secret-987"}
    for path in tmp_path.iterdir():
        assert "sk-secret" not in path.read_text(encoding="utf-8")


def fake_lines(data: bytes) -> list[Line]:
    return [Line(text=f"text of {len(data)} bytes", box_px=(0.0, 0.0, 5.0, 5.0), score=0.9)]


@pytest.mark.parametrize("on", ["local", "ray"])
def test_pictures_are_captioned_with_their_text_here_and_on_ray(
    on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocr, "read_lines", fake_lines)
    monkeypatch.setattr(ocr, "_engine_name", lambda: "fake")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(scene(0)))
    records = [
        record("a", StoredImage(path="a.png", width=240, height=180), answer="Old."),
        record("b", scene(1), answer="Old."),
        record("broken", StoredImage(data=b"broken", width=9, height=9)),
        record("text"),
    ]

    def describe(body: dict[str, Any], number: int) -> Reply:
        found = re.search(r"text of (\d+) bytes", prompt_of(body))
        assert found is not None
        assert body["messages"][-1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
        return Reply(text=f"A scene with {found[1]}.")

    with FakeEndpoint(describe) as fake, ray_if(on):
        endpoint = Endpoint(base_url=fake.url, model="fake")
        options: dict[str, Any] = {"out": tmp_path / "out", "root": tmp_path / "in", "on": on, "progress": False}
        run_job(Recaption(), records, endpoint, **options)
        run_job(Recaption(), records, endpoint, **options)
    assert fake.requests == 2
    made = [Record.from_dict(line) for line in lines_of(tmp_path / "out" / "kept.jsonl")]
    sizes = [len(encoded(scene(seed))) for seed in (0, 1)]
    assert [texts_of(each, "assistant") for each in made] == [[f"A scene with {size}."] for size in sizes]
    assert made[0].images[0].data == encoded(scene(0))
    why = {line["id"]: line["why"] for line in lines_of(tmp_path / "out" / "outcomes.jsonl")}
    assert why["text"] == "it has no image"
    assert "cannot read image" in why["broken"]
    assert len(lines_of(tmp_path / "out" / "ocr.jsonl")) == 2


class ray_if:
    """A local Ray of one core for the length of a block."""

    def __init__(self, on: str) -> None:
        self._ray = pytest.importorskip("ray") if on == "ray" else None

    def __enter__(self) -> None:
        if self._ray is not None:
            self._ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", object_store_memory=80 * 2**20)

    def __exit__(self, *_: object) -> None:
        if self._ray is not None:
            self._ray.shutdown()


def test_progress_goes_to_stderr_and_reasons_are_counted_by_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint(steady) as fake:
        endpoint = Endpoint(base_url=fake.url, model="fake")
        run_job(ScoreWriting(threshold=4), scored(12), endpoint, out=tmp_path, total=12)
    assert capsys.readouterr().out == ""
    assert reason_kind("its writing scores 3, below 4") == "its writing scores #, below #"
    assert reason_kind("cannot read image <6 bytes>: it is no picture") == "cannot read image <# bytes>"
