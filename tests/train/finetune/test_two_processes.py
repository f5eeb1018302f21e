"""`vl2 finetune` on two gloo processes trains what one trains, and says what is wrong on both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.datasets.own_folder import color_rows, write_csv
from tests.reference import CHECKPOINTS
from tests.train.forks import Fork
from tests.train.two_ranks import STORE_IS_KEPT, environment, open_store

MODEL = ("--model", str(CHECKPOINTS / "base"), "--device", "cpu")
SETTINGS = ("--steps", "3", "--batch-size", "8", "--rank", "4", "--max-new-tokens", "4", "--learning-rate", "1e-3")


def start_two(arguments: list[str], folder: Path) -> list[tuple[int, str]]:
    """Run `vl2` on two ranks that know each other, and return the exit code and the messages of each."""
    store = open_store()
    ranks = [
        Fork(arguments, folder / f"said-{rank}", environment=environment(rank, 2, store.port) | STORE_IS_KEPT)
        for rank in range(2)
    ]
    return [rank.end() for rank in ranks]


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("flags", [(), ("--preference",)], ids=["answers", "preferences"])
def test_two_processes_train_the_adapter_of_one(flags: tuple[str, ...], tmp_path: Path) -> None:
    rows = [
        {**row, "rejected": "purple" if number % 2 else "no"} for number, row in enumerate(color_rows(tmp_path, 12))
    ]
    colors = write_csv(tmp_path / "questions.csv", rows)
    command = ["finetune", str(colors), *MODEL, *SETTINGS, *flags]
    # A record takes some 50 tokens, so a step of eight has two sequences on any number of ranks.
    command += ["--seq-len", "160"]
    ended = start_two([*command, "--out", str(tmp_path / "two")], tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    code, said = Fork([*command, "--out", str(tmp_path / "one")], tmp_path / "said-alone").end()
    assert code == 0, said
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) == 6  # three steps, three evaluations
    for single, double in zip(one, two, strict=True):
        if "evaluation" in single:
            assert double["evaluation"] == pytest.approx(single["evaluation"], rel=1e-5)
        else:
            assert double["tokens"] == single["tokens"]
            assert [double["loss"], double["grad_norm"]] == pytest.approx(
                [single["loss"], single["grad_norm"]], rel=1e-5
            )
    weights = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        assert float((weight - weights[1][name]).norm()) <= 1e-3 * float(weight.norm()), name
    reports = [json.loads((tmp_path / name / "report.json").read_text("utf-8")) for name in ("one", "two")]
    assert reports[1]["before"] == reports[0]["before"]
    assert reports[1]["before"]["preferred"] is not None
    assert reports[1]["best_step"] == reports[0]["best_step"]
    assert "data     9 records to train on" in ended[0][1]
    assert ended[1][1].count("records to train on") == 0  # the second rank is silent


def test_two_processes_refuse_bad_data_and_leave_no_folder_behind(tmp_path: Path) -> None:
    bad = write_csv(tmp_path / "bad.csv", [{"image": "images/none.png", "question": "What?", "answer": "x"}])
    ended = start_two(["finetune", str(bad), "--out", str(tmp_path / "out"), *MODEL], tmp_path)
    assert [code for code, _ in ended] == [1, 1]
    assert all("can be trained on: 1 records are bad" in said for _, said in ended)
    assert not list((tmp_path / "out").iterdir())
