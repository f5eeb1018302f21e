"""`vl2 batch` beside what its job does: what is refused before anything is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reference import CHECKPOINTS
from vl2.errors import UserError

TINY = CHECKPOINTS / "tiny"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"id": "a", "question": "Hi", "max_tokens": 2.0}\n{"id": "b", "question": "Hi", "top_k": 0.5}\n')
    return path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("flags", "planned"), [((), 8 * 4096), (("--max-context", "100"), 800)], ids=["own context", "said"]
)
def test_all_positions_that_a_job_may_use_are_planned(
    vl2, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], planned: int
) -> None:
    seen = []

    def load(*_: object, cache_tokens: int, **__: object) -> None:
        seen.append(cache_tokens)
        raise UserError("enough")

    monkeypatch.setattr("vl2.infer.vlm.load", load)
    assert vl2("batch", asked, "-o", tmp_path / "out.jsonl", "-m", TINY, "-q", *flags).code == 1
    batch = ("--batch-size", "8", "--limit", "1", "--out", tmp_path / "evaluated")
    assert vl2("eval", "run", "presence", *batch, "-m", TINY, "-q", *flags).code == 1
    assert seen == [planned, planned]


def test_a_request_of_wrong_types_is_one_error_among_answers(vl2, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert vl2("batch", asked, "-o", out, "-m", TINY, "-q").code == 0
    first, second = lines(out)
    assert first["text"] is not None
    assert second["error"] == "top_k must be a whole number, got 0.5"


def test_other_weights_are_another_job(vl2, asked: Path, tmp_path: Path) -> None:
    command = ("batch", asked, "-o", tmp_path / "out.jsonl", "-m", TINY, "-q")
    assert vl2(*command).code == 0
    ran = vl2(*command, "--weights", "int8")
    assert ran.code == 1
    assert "was begun with weights auto, now it is int8" in ran.err


def test_a_model_that_is_not_there_costs_neither_the_job_nor_its_answers(vl2, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert vl2("batch", asked, "-o", out, "-m", "./typo", "-q").code == 1
    assert vl2("batch", asked, "-o", out, "-m", TINY, "-q").code == 0
    before = out.read_text()
    assert vl2("batch", asked, "-o", out, "-m", "./typo", "-q", "--fresh").code == 1
    assert out.read_text() == before
    assert vl2("batch", asked, "-o", out, "-m", TINY, "-q", "--fresh", "--weights", "int8").code == 0
    assert len(lines(out)) == 2


def test_the_requests_are_never_the_output(vl2, asked: Path, nothing_loads) -> None:
    before = asked.read_text()
    ran = vl2("batch", asked, "-o", asked, "-m", TINY, "--fresh")
    assert (ran.code, ran.err) == (1, f"vl2: -o {asked} is one of the inputs: name another file\n")
    assert asked.read_text() == before
