"""`vl2 plan`: a table, JSON, a picture, and one line for what cannot be planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl2.cli.main import run


def test_a_plan_as_json_has_its_layout_and_days(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--size", "tiny", "--stage", "fine-tuning", "--gpus", "8", "--pipeline", "2", "--json"]
    assert run(arguments) == 0
    (stage,) = json.loads(capsys.readouterr().out)
    assert stage["stage"] == "fine-tuning"
    assert stage["layout"]["pipeline"] == 2
    layout = stage["layout"]
    assert layout["pipeline"] * layout["data"] * layout["tensor_parallel"] == 8
    assert stage["days"] * 24 * 8 == pytest.approx(stage["gpu_hours"])


def test_a_plan_as_a_table_says_what_it_assumes_and_draws_its_schedule(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "schedule.png"
    arguments = ["plan", "--size", "tiny", "--stage", "fine-tuning", "--gpus", "8", "--pipeline", "2"]
    assert run([*arguments, "--picture", str(picture)]) == 0
    said = capsys.readouterr()
    assert "GPU-hours" in said.out
    assert "Assumed: 312 TFLOP/s per GPU" in said.out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "a cluster has 1 to 100,000 GPUs, got 0"),
        (["--gpus", "99999999999"], "a cluster has 1 to 100,000 GPUs, got 99999999999"),
        (["--gpus", "7", "--pipeline", "2"], "no layout divides 7 GPUs"),
        (["--memory-gb", "1"], "nothing fits: the smallest layout"),
        (["--dense-efficiency", "2"], "dense efficiency must be in 0..1, got 2"),
        (["--overlap", "2"], "overlap must be in 0..1, got 2"),
        (["--profile", "none.json"], "none.json is not the output of `vl2 data stats --json`"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["plan", "--size", "tiny", "--stage", "fine-tuning", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
