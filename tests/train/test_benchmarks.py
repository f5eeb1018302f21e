"""The benchmarks of training run, and write what they say that they write; their figures are nobody's here."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here: the programs set how many threads they take."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run a program of the benchmarks here, where all that it imports has been imported, and return what it prints."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)

    def run_here(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return capsys.readouterr().out

    yield run_here
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]  # they have names that others may have too


@pytest.mark.hf
def test_training_is_compared_with_the_library_and_the_loader_with_the_trainer(
    run: Callable[..., str], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    trained = tmp_path / "training.json"
    assert "times plain" in run("training.py", "--quick", "--dtypes", "float32", "--out", str(trained))
    (row,) = json.loads(trained.read_text())["training"]
    assert row["loss_difference"] < 1e-4
    assert min(row["ratio"], row["limit_flops_per_s"], row["ours"]["tokens_per_s"], row["plain"]["tiles_per_s"]) > 0
    small = ("--small", "--seq-len", "1024", "--records", "8", "--steps", "1", "--index-records", "5000")
    counts = ("--windows", "1", "--workers", "0", "--training", str(trained), "--out", str(tmp_path / "loader.json"))
    assert "times the trainer" in run("loader.py", *small, *counts)
    (loading,) = json.loads((tmp_path / "loader.json").read_text())["loading"]
    asked = json.loads(trained.read_text())["loader"]
    ratios = [loading[n] / loading["wall_s"] / asked[f"trainer_{n}_per_s"] for n in ("samples", "tiles")]
    assert loading["times_the_trainer"] == pytest.approx(min(ratios))


def test_the_load_of_experts_is_drawn_with_and_without_the_bias(run: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = run("expert_load.py", "--steps", "2", "--settled", "1", "--out", str(tmp_path / "load.svg"))
    assert "steps within 2" in said
    assert "without it" in (tmp_path / "load.svg").read_text(encoding="utf-8")
